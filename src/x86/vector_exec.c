/*
 * Runs vector instructions through their stubs: availability checks, memory operands, MXCSR and
 * SIMD floating-point exceptions, the MMX state. The CPU's thread.
 * SDM vol. 1 chapters 9 (MMX) and 11.5 (SIMD exceptions), vol. 3 chapter 13, vol. 2 section 2.5.
 *
 * Deviations, as the host always runs with exceptions masked: an unmasked overflow or underflow
 * sets the precision flag as the masked one does; DPPS and DPPD report the exceptions of all their
 * steps together.
 */
#include "x86/vector_int.h"

void x86_sse_unavailable(struct x86_cpu *cpu)
{
    if ((cpu->s.cr0 & X86_CR0_EM) || !(cpu->s.cr4 & X86_CR4_OSFXSR))
        x86_raise(cpu, X86_UD);
    if (cpu->s.cr0 & X86_CR0_TS)
        x86_raise(cpu, X86_NM);
}

void x86_avx_unavailable(struct x86_cpu *cpu)
{
    const uint64_t both = X86_XCR0_SSE | X86_XCR0_AVX;

    if (!(cpu->s.cr4 & X86_CR4_OSXSAVE) || (cpu->s.xcr0 & both) != both)
        x86_raise(cpu, X86_UD);
    if (cpu->s.cr0 & X86_CR0_TS)
        x86_raise(cpu, X86_NM);
}

void x86_check_mmx(struct x86_cpu *cpu)
{
    if (cpu->s.cr0 & X86_CR0_EM)
        x86_raise(cpu, X86_UD);
    if (cpu->s.cr0 & X86_CR0_TS)
        x86_raise(cpu, X86_NM);
    x86_check_pending(cpu);
}

void x86_enter_mmx(struct x86_cpu *cpu)
{
    x86_fpu_set_top(&cpu->s.fpu, 0);
    cpu->s.fpu.ftw = 0xff;
}

void x86_mmx_written(struct x86_cpu *cpu, uint16_t offset)
{
    store_le16((char *)vec_operand(cpu, offset) + 8, 0xffff);
}

static void set_host_mxcsr(uint32_t mxcsr)
{
    __asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
}

/* Where an instruction's operands are; see x86_stub_code. */
struct vec_args {
    void *reg, *rm, *v, *is4;
};

static inline struct vec_args vec_registers(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    return (struct vec_args) {vec_operand(cpu, insn->dst), vec_operand(cpu, insn->src),
                              vec_operand(cpu, insn->src2), vec_operand(cpu, insn->imm)};
}

static inline uint64_t vec_call(struct x86_cpu *cpu, const struct x86_stub *stub,
                                const struct vec_args *args)
{
    return stub->run(args->reg, args->rm, args->v, args->is4, cpu);
}

static bool has_tiny(const struct x86_stub *stub, const uint8_t *result)
{
    for (unsigned i = 0; i < stub->tiny_count; i++) {
        if (stub->flags & X86_STUB_TINY32) {
            uint32_t magnitude = load_le32(result + i * 4) & 0x7fffffff;
            if (magnitude && magnitude < 0x00800000)
                return true;
        } else {
            uint64_t magnitude = load_le64(result + i * 8) & ~BIT(63);
            if (magnitude && magnitude < BIT(52))
                return true;
        }
    }
    return false;
}

/*
 * With an unmasked exception: the host runs it masked, into a copy; the flags that come out say
 * what the guest's CPU would have done. Invalid, denormal and divide-by-zero are found before the
 * computation, so that when one of them is unmasked the others' flags are not set. Flush to zero
 * counts only while underflow is masked. SDM vol. 1 sections 11.5.2, 11.5.3, 10.2.3.3.
 */
static uint64_t run_unmasked(struct x86_cpu *cpu, const struct x86_stub *stub,
                             const struct vec_args *args)
{
    const uint32_t guest = cpu->s.fpu.mxcsr, host = x86_host_mxcsr(), before = 7;
    const uint32_t enabled = ~guest >> 7 & MXCSR_FLAGS;
    bool to_rm = stub->flags & X86_STUB_DEST_RM;
    void *dest = to_rm ? args->rm : args->reg;
    _Alignas(32) uint8_t copy[32];
    struct vec_args on_copy = *args;
    uint32_t mxcsr = (guest & ~MXCSR_FLAGS) | MXCSR_MASKS, raised;
    uint64_t flags;

    memcpy(copy, dest, stub->dest_size);
    if (to_rm && stub->dest_size)
        on_copy.rm = copy;
    else if (!to_rm && stub->dest_size)
        on_copy.reg = copy;
    if (enabled & MXCSR_UE)
        mxcsr &= ~MXCSR_FTZ;
    set_host_mxcsr(mxcsr);
    flags = vec_call(cpu, stub, &on_copy);
    raised = x86_host_mxcsr() & MXCSR_FLAGS;
    set_host_mxcsr(host);

    if (enabled & MXCSR_UE && has_tiny(stub, copy))
        raised |= MXCSR_UE;
    if (raised & before & enabled)
        raised &= before;
    cpu->s.fpu.mxcsr |= raised;
    if (raised & enabled)
        x86_raise(cpu, cpu->s.cr4 & X86_CR4_OSXMMEXCPT ? X86_XM : X86_UD);
    memcpy(dest, copy, stub->dest_size);
    return flags;
}

/*
 * With all exceptions masked the host's MXCSR can be the guest's, sticky flags included. Those may
 * stay behind in the host's (the ABI preserves only the control bits), which spares most loads.
 */
static uint64_t run_float(struct x86_cpu *cpu, const struct x86_stub *stub,
                          const struct vec_args *args)
{
    const uint32_t guest = cpu->s.fpu.mxcsr, host = x86_host_mxcsr();
    uint32_t after;
    uint64_t flags;

    if (unlikely((guest & MXCSR_MASKS) != MXCSR_MASKS))
        return run_unmasked(cpu, stub, args);
    if (guest != host)
        set_host_mxcsr(guest);
    flags = vec_call(cpu, stub, args);
    after = x86_host_mxcsr();
    cpu->s.fpu.mxcsr = after;
    if ((after ^ host) & ~MXCSR_FLAGS)
        set_host_mxcsr(host);
    return flags;
}

static void check_alignment(struct x86_cpu *cpu, uint64_t la, unsigned size)
{
    if (unlikely(la & (size - 1)))
        x86_raise_error(cpu, X86_GP, 0);
}

void x86_vector_run_sse_registers(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    const struct vec_args args = vec_registers(cpu, insn);

    x86_check_sse(cpu);
    (void)vec_call(cpu, insn->aux, &args);
}

void x86_vector_run_avx_registers(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    const struct vec_args args = vec_registers(cpu, insn);

    x86_check_avx(cpu);
    (void)vec_call(cpu, insn->aux, &args);
}

/*
 * From guest RAM itself where that is possible, else from a copy; also where the guest's CPU would
 * not insist on alignment and the host's might (SHA).
 */
static void run_load(struct x86_cpu *cpu, const struct x86_insn *insn, uint64_t la)
{
    const struct x86_stub *stub = insn->aux;
    struct vec_args args = vec_registers(cpu, insn);
    _Alignas(32) uint8_t bounce[32];

    args.rm = (void *)(uintptr_t)vec_read_pointer(cpu, la, stub->mem_size);
    if (!args.rm || unlikely(la & 15 && !(stub->flags & (X86_STUB_VEX | X86_STUB_ALIGN)))) {
        x86_load_bytes(cpu, la, bounce, stub->mem_size);
        args.rm = bounce;
    }
    (void)vec_call(cpu, stub, &args);
}

void x86_vector_run_sse_load(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    const struct x86_stub *stub = insn->aux;
    uint64_t la;

    x86_check_sse(cpu);
    la = x86_operand_la(cpu, insn, stub->mem_size, X86_READ);
    if (stub->flags & X86_STUB_ALIGN)
        check_alignment(cpu, la, stub->mem_size);
    run_load(cpu, insn, la);
}

void x86_vector_run_avx_load(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    const struct x86_stub *stub = insn->aux;

    x86_check_avx(cpu);
    run_load(cpu, insn, x86_operand_la(cpu, insn, stub->mem_size, X86_READ));
}

static void check_available(struct x86_cpu *cpu, const struct x86_stub *stub)
{
    if (stub->flags & X86_STUB_VEX)
        x86_check_avx(cpu);
    else if (stub->flags & X86_STUB_MMX)
        x86_check_mmx(cpu);
    else
        x86_check_sse(cpu);
}

/* The linear address of the memory operand, with all faults that the access can have. */
static uint64_t prepare_memory(struct x86_cpu *cpu, const struct x86_insn *insn, uint8_t *bounce)
{
    const struct x86_stub *stub = insn->aux;
    bool store = stub->flags & X86_STUB_STORE;
    uint64_t la = x86_operand_la(cpu, insn, stub->mem_size, store ? X86_WRITE : X86_READ);

    if (stub->flags & X86_STUB_ALIGN)
        check_alignment(cpu, la, stub->mem_size);
    if (store)
        x86_probe_write(cpu, la, stub->mem_size);
    else
        x86_load_bytes(cpu, la, bounce, stub->mem_size);
    return la;
}

void x86_vector_run_any(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    const struct x86_stub *stub = insn->aux;
    struct vec_args args = vec_registers(cpu, insn);
    _Alignas(32) uint8_t bounce[32];
    uint64_t la = 0, flags;

    check_available(cpu, stub);
    if (stub->mem_size) {
        la = prepare_memory(cpu, insn, bounce);
        args.rm = bounce;
    }
    if (stub->flags & X86_STUB_MMX)
        x86_enter_mmx(cpu);
    if (stub->flags & X86_STUB_MXCSR)
        flags = run_float(cpu, stub, &args);
    else
        flags = vec_call(cpu, stub, &args);
    if (stub->flags & X86_STUB_STORE)
        x86_store_bytes(cpu, la, bounce, stub->mem_size);
    if (stub->flags & X86_STUB_FLAGS)
        cpu->s.rflags = (cpu->s.rflags & ~X86_STATUS_FLAGS) | (flags & X86_STATUS_FLAGS);
    if (stub->flags & X86_STUB_DEST_MMX)
        x86_mmx_written(cpu, stub->flags & X86_STUB_DEST_RM ? insn->src : insn->dst);
}
