/*
 * One instruction from fetch to trap. Runs on the CPU's thread.
 * SDM vol. 3 sections 6.8-6.9 (what is masked when), 18.3 (RF, TF).
 */
#include "x86/cpu.h"
#include "x86/debug.h"
#include "x86/mem.h"

/* Linear address of an instruction byte. */
static uint64_t code_la(const struct x86_cpu *cpu, uint64_t rip)
{
    uint64_t la = cpu->seg_base[X86_CS] + rip;
    return cpu->code_size == 8 ? la : (uint32_t)la;
}

static void check_code_limit(struct x86_cpu *cpu, unsigned length)
{
    if (cpu->code_size != 8 &&
        !range_fits(cpu->s.rip, length, (uint64_t)cpu->s.seg[X86_CS].limit + 1))
        x86_raise_error(cpu, X86_GP, 0);
}

static void fetch_and_decode(struct x86_cpu *cpu, struct x86_insn *insn)
{
    uint8_t bytes[15];
    uint64_t pages[2];
    uint64_t la = code_la(cpu, cpu->s.rip);

    check_code_limit(cpu, 1);
    unsigned count = x86_fetch(cpu, la, bytes, pages);
    enum x86_decode_result result = x86_decode(cpu->decoder, &cpu->decode_mode, bytes, count, insn);
    if (result == X86_DECODE_TRUNCATED) {
        /* Its bytes go on in a page that cannot be fetched: have that fault. */
        check_code_limit(cpu, count + 1);
        x86_fetch(cpu, code_la(cpu, cpu->s.rip + count), bytes, pages);
        x86_raise(cpu, X86_UD);
    }
    check_code_limit(cpu, insn->length);
}

static uint64_t rip_after(const struct x86_cpu *cpu, unsigned length)
{
    uint64_t next = cpu->s.rip + length;
    return cpu->code_size == 8 ? next : (uint32_t)next;
}

static void step(struct x86_cpu *cpu)
{
    struct x86_insn insn;
    bool debug = cpu->debug_active; /* as it is when the instruction begins: POPF may change TF */

    if (debug)
        x86_debug_before(cpu);
    fetch_and_decode(cpu, &insn);
    cpu->next_rip = rip_after(cpu, insn.length);
    cpu->s.interrupt_shadow = false; /* a new one may begin */
    cpu->s.shadow_is_mov_ss = false;
    cpu->end_block = false; /* what came before has ended */
    insn.run(cpu, &insn);
    cpu->s.rip = cpu->next_rip;
    if (debug)
        x86_debug_after(cpu);
}

enum x86_result x86_step(struct x86_cpu *cpu)
{
    jmp_buf here;
    jmp_buf *outer = cpu->unwind;

    cpu->unwind = &here;
    if (setjmp(here)) {
        cpu->unwind = outer;
        return X86_FAULT;
    }
    step(cpu);
    cpu->unwind = outer;
    return X86_OK;
}
