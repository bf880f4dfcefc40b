/* What a divergence was, for the log. vCPU's thread. See lockstep.h. */
#include <Zydis/Zydis.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "engine/soft/lockstep_int.h"
#include "x86/mem.h"

#define MEMORY_LINES_MAX 8

static void report_value(const char *name, uint64_t before, uint64_t shadow, uint64_t unit)
{
    if (shadow != unit)
        log_error("  %-8s was %016llx; interpreter %016llx, translator %016llx", name,
                  (unsigned long long)before, (unsigned long long)shadow, (unsigned long long)unit);
}

static void report_general(const struct lockstep *l)
{
    static const char *const names[] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                        "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
    const struct x86_state *b = &l->before, *s = &l->shadow.s, *u = &l->vcpu->cpu.s;

    for (unsigned i = 0; i < 16; i++)
        report_value(names[i], b->gpr[i], s->gpr[i], u->gpr[i]);
    report_value("rip", b->rip, s->rip, u->rip);
    report_value("rflags", b->rflags, s->rflags, u->rflags);
    report_value("mxcsr", b->fpu.mxcsr, s->fpu.mxcsr, u->fpu.mxcsr);
    report_value("fcw", b->fpu.fcw, s->fpu.fcw, u->fpu.fcw);
    report_value("fsw", b->fpu.fsw, s->fpu.fsw, u->fpu.fsw);
    report_value("ftw", b->fpu.ftw, s->fpu.ftw, u->fpu.ftw);
    report_value("halted", false, l->shadow.halted, l->vcpu->cpu.halted);
}

/* Highest byte first, in as many words as the register has. */
static void report_wide(const char *name, unsigned number, const uint8_t *shadow,
                        const uint8_t *unit, unsigned size)
{
    char a[65] = "", b[65] = "";

    if (memcmp(shadow, unit, size) == 0)
        return;
    for (unsigned i = 0; i < size; i++) {
        snprintf(a + 2 * i, 3, "%02x", shadow[size - 1 - i]);
        snprintf(b + 2 * i, 3, "%02x", unit[size - 1 - i]);
    }
    log_error("  %s%u: interpreter %s, translator %s", name, number, a, b);
}

static void report_fpu(const struct x86_fpu *shadow, const struct x86_fpu *unit)
{
    for (unsigned i = 0; i < 16; i++)
        report_wide("ymm", i, shadow->ymm[i], unit->ymm[i], 32);
    for (unsigned i = 0; i < 8; i++)
        report_wide("st", i, shadow->st[i], unit->st[i], 10);
}

static void report_end(const char *who, enum lockstep_end end, const struct x86_cpu *cpu)
{
    const struct x86_event *e = &cpu->fault;

    if (end == LOCKSTEP_FAULT)
        log_error("  the %s raised vector %u, error code 0x%x, address or bits 0x%llx", who,
                  e->vector, e->has_error ? e->error : 0,
                  e->has_payload ? (unsigned long long)e->payload : 0);
    else
        log_error("  the %s %s", who, end == LOCKSTEP_OK ? "raised nothing" : "came to a device");
}

static void report_memory(const struct lockstep *l)
{
    unsigned lines = 0;

    for (unsigned i = 0; i < l->page_count; i++) {
        const struct shadow_page *page = &l->page[i];
        for (unsigned k = 0; k < PAGE_SIZE && lines < MEMORY_LINES_MAX; k += 8) {
            uint64_t shadow = load_le64(page->copy + k), unit = load_le64(page->host + k);
            if (shadow == unit)
                continue;
            log_error("  memory at 0x%llx was %016llx; interpreter %016llx, translator %016llx",
                      (unsigned long long)(page->gpa + k),
                      (unsigned long long)load_le64(page->base + k), (unsigned long long)shadow,
                      (unsigned long long)unit);
            lines++;
        }
    }
}

static ZydisMachineMode machine_mode(const struct x86_cpu *cpu)
{
    return cpu->code_size == 8   ? ZYDIS_MACHINE_MODE_LONG_64
           : cpu->code_size == 4 ? ZYDIS_MACHINE_MODE_LEGACY_32
                                 : ZYDIS_MACHINE_MODE_LEGACY_16;
}

static void report_instruction(struct x86_cpu *shadow, uint64_t rip, unsigned length)
{
    uint64_t pages[2];
    uint8_t bytes[15];
    char hex[31] = "";
    ZydisDisassembledInstruction text;
    unsigned got = x86_fetch(shadow, shadow->seg_base[X86_CS] + rip, bytes, pages);

    for (unsigned k = 0; k < MIN(got, length); k++)
        snprintf(hex + 2 * k, 3, "%02x", bytes[k]);
    bool ok = ZYAN_SUCCESS(ZydisDisassembleIntel(machine_mode(shadow), rip, bytes, got, &text));
    log_error("  %016llx  %-30s %s", (unsigned long long)rip, hex, ok ? text.text : "?");
}

/* One line for each instruction, from the guest's memory as it is now. */
static void report_code(struct lockstep *l, const struct x86_unit *unit)
{
    struct x86_cpu *shadow = &l->shadow;
    jmp_buf fault;

    memcpy(&shadow->s, &l->before, sizeof shadow->s);
    x86_cpu_update_mode(shadow);
    shadow->unwind = &fault;
    if (setjmp(fault) || setjmp(l->abandon))
        return;
    for (unsigned i = 0; i < unit->count; i++) {
        report_instruction(shadow, shadow->s.rip, unit->insn[i].length);
        shadow->s.rip += unit->insn[i].length;
    }
}

void lockstep_report(struct lockstep *l, const struct x86_unit *unit, enum lockstep_end end,
                     enum lockstep_end shadow)
{
    const struct x86_cpu *cpu = &l->vcpu->cpu;
    const char *what = NULL;

    log_error("lockstep: vCPU %u differs after the unit at RIP 0x%llx (physical 0x%llx, CPL %u)",
              l->vcpu->index, (unsigned long long)l->before.rip,
              (unsigned long long)(unit->page | unit->page_offset),
              (l->before.seg[X86_SS].attr & X86_SEG_DPL) >> X86_SEG_DPL_SHIFT);
    report_end("interpreter", shadow, &l->shadow);
    report_end("translator", end, cpu);
    report_general(l);
    report_fpu(&l->shadow.s.fpu, &cpu->s.fpu);
    if (!x86_state_equal(&cpu->s, &l->shadow.s, &what))
        log_error("  the first field of the state that differs is %s", what);
    report_memory(l);
    report_code(l, unit);
}
