/*
 * Page faults in the middle of every kind of instruction, in code that is hot: the fault's address
 * and error code, RIP at the instruction, all registers and flags as before, memory untouched.
 * SDM vol. 3 section 6.5 (faults), 4.7 (error codes); vol. 1 section 7.3.9.2 (REP).
 */
#include "flat.h"

#define HOT 30
#define V   0x40000000ul /* two pages; the second one is taken away */
#define P   1ull
#define W   2ull

static uint8_t frames[2 * 4096] __attribute__((aligned(4096)));
static uint8_t before[2 * 4096];

/* Registers in the order of struct frame: r15 to r8, rdi, rsi, rbp, rbx, rdx, rcx, rax. */
struct registers {
    uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
    uint64_t rsp, rflags;
};
static struct registers in;
static struct frame out;
static uint64_t out_cr2;
void run_code(const void *code);
extern char run_back[], run_end[];

/*
 * Loads all registers, and goes to the code; that ends with INT 0x81 or a fault, whose handler (on
 * a stack of its own, since RSP is the test's) comes back at run_back.
 */
asm("run_code:\n"
    "  push %rbx\n  push %rbp\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n"
    "  mov %rdi, run_target(%rip)\n"
    "  mov %rsp, run_stack(%rip)\n"
    "  mov in+0, %r15\n  mov in+8, %r14\n  mov in+16, %r13\n  mov in+24, %r12\n"
    "  mov in+32, %r11\n  mov in+40, %r10\n  mov in+48, %r9\n  mov in+56, %r8\n"
    "  mov in+64, %rdi\n  mov in+72, %rsi\n  mov in+80, %rbp\n  mov in+88, %rbx\n"
    "  mov in+96, %rdx\n  mov in+104, %rcx\n  mov in+112, %rax\n"
    "  pushq in+128\n  popfq\n"
    "  mov in+120, %rsp\n"
    "  jmp *run_target\n"
    "run_back:\n"
    "  mov run_stack(%rip), %rsp\n"
    "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbp\n  pop %rbx\n"
    "  ret\n"
    "run_end: int $0x81\n" /* where called and jumped-to code ends */
    ".bss\n"
    "run_target: .quad 0\n"
    "run_stack: .quad 0\n"
    ".text\n");

static void on_end(struct frame *frame)
{
    out = *frame;
    out_cr2 = frame->vector == 14 ? read_cr2() : 0;
    frame->rip = (uint64_t)run_back;
    frame->rflags = 2;
}

/* --- the cases --- */

struct test {
    const char *name;
    const char *code, *end;
    int offset;       /* of the pointer in RBX (and RSP, when `stack`) from the page boundary */
    bool stack;       /* RSP is the pointer */
    uint8_t reads;    /* the second page: read when missing; 0: only written */
    uint8_t progress; /* a string instruction: elements done before the fault */
};

#define CASE(name, text)                                                                           \
    asm("case_" #name ": " text "\n int $0x81\n case_" #name "_end:\n");                           \
    extern const char case_##name[], case_##name##_end[];
#define ENTRY(name, ...)                                                                           \
    {                                                                                              \
#name, case_##name, case_##name##_end, __VA_ARGS__                                         \
    }

CASE(load, "movq (%rbx), %rax")
CASE(load_indexed, "movl -64(%rbx,%rcx,4), %r10d")
CASE(load_r14, "movw (%rbx), %r14w")
CASE(store, "movq %rax, (%rbx)")
CASE(store_r15, "movl %r15d, (%rbx)")
CASE(store_imm, "movl $0x12345678, (%rbx)")
CASE(movbe, "movbe %rax, (%rbx)")
CASE(movzx, "movzwl (%rbx), %ecx")
CASE(add_to, "addq %rax, (%rbx)")
CASE(add_from, "addq (%rbx), %rax")
CASE(adc_to, "adcl %r10d, (%rbx)")
CASE(inc, "incl (%rbx)")
CASE(not_, "notl (%rbx)")
CASE(neg, "negq (%rbx)")
CASE(shift, "shll $3, (%rbx)")
CASE(shift_cl, "rcrq %cl, (%rbx)")
CASE(shld, "shldq $7, %rax, (%rbx)")
CASE(bts, "btsl $5, (%rbx)")
CASE(bts_reg, "btsq %rcx, (%rbx)")
CASE(xchg, "xchgq %rax, (%rbx)")
CASE(lock_add, "lock addl %eax, (%rbx)")
CASE(lock_inc_split, "lock incq (%rbx)")
CASE(xadd, "lock xaddq %r11, (%rbx)")
CASE(cmpxchg, "lock cmpxchgq %rcx, (%rbx)")
CASE(cmpxchg_plain, "cmpxchgl %ecx, (%rbx)")
CASE(cmpxchg16b, "lock cmpxchg16b (%rbx)")
CASE(setcc, "setc (%rbx)")
CASE(cmov, "cmovcq (%rbx), %rax")
CASE(div, "divl (%rbx)")
CASE(imul, "imulq $77, (%rbx), %rax")
CASE(mulx, "mulx (%rbx), %rsi, %rdi")
CASE(push, "pushq %rax")
CASE(push_mem, "pushq (%rbx)")
CASE(pop, "popq %rax")
CASE(pop_mem, "popq (%rbx)")
CASE(pushf, "pushfq")
CASE(popf, "popfq")
CASE(call, "call run_end")
CASE(call_reg, "leaq run_end(%rip), %rax\n call *%rax")
CASE(call_mem, "call *(%rbx)")
CASE(jmp_mem, "jmp *(%rbx)")
CASE(ret, "ret")
CASE(ret_imm, "ret $32")
CASE(leave, "leave")
CASE(enter, "enter $16, $0")
CASE(movups_load, "movups (%rbx), %xmm1")
CASE(movups_store, "movups %xmm1, (%rbx)")
CASE(movaps_store, "movaps %xmm1, (%rbx)")
CASE(paddd, "paddd (%rbx), %xmm1")
CASE(movsd, "movsd %xmm1, (%rbx)")
CASE(cvt, "cvtsi2sdq (%rbx), %xmm2")
CASE(fld, "fldt (%rbx)")
CASE(fstp, "fld1\n fstpt (%rbx)\n")
CASE(fild, "fildq (%rbx)")
CASE(fnstenv, "fnstenv (%rbx)")
CASE(fxsave, "fxsave (%rbx)")
CASE(movs_to, "movsq")
CASE(stos, "stosl")
CASE(lods, "lodsw")
CASE(scas, "scasl")
CASE(cmps, "cmpsq")
CASE(rep_movs_to, "rep movsb")
CASE(rep_movsq_to, "rep movsq")
CASE(rep_stos, "rep stosl")
CASE(rep_lods, "rep lodsb")
CASE(repe_scas, "repe scasb")
CASE(sgdt, "sgdt (%rbx)")
CASE(iret, "iretq")

static const struct test tests[] = {
    ENTRY(load, .offset = -4, .reads = 1),
    ENTRY(load_indexed, .offset = -2 - 4 * 9 + 64, .reads = 1),
    ENTRY(load_r14, .offset = -1, .reads = 1),
    ENTRY(store, .offset = -4),
    ENTRY(store_r15, .offset = -1),
    ENTRY(store_imm, .offset = -3),
    ENTRY(movbe, .offset = -5),
    ENTRY(movzx, .offset = -1, .reads = 1),
    ENTRY(add_to, .offset = -4),
    ENTRY(add_from, .offset = -4, .reads = 1),
    ENTRY(adc_to, .offset = -1),
    ENTRY(inc, .offset = -2),
    ENTRY(not_, .offset = -2),
    ENTRY(neg, .offset = -6),
    ENTRY(shift, .offset = -1),
    ENTRY(shift_cl, .offset = -7),
    ENTRY(shld, .offset = -3),
    ENTRY(bts, .offset = -2),
    ENTRY(bts_reg, .offset = -5),
    ENTRY(xchg, .offset = -4),
    ENTRY(lock_add, .offset = -2),
    ENTRY(lock_inc_split, .offset = -4),
    ENTRY(xadd, .offset = 0),
    ENTRY(cmpxchg, .offset = -1),
    ENTRY(cmpxchg_plain, .offset = 0),
    ENTRY(cmpxchg16b, .offset = 0),
    ENTRY(setcc, .offset = 0),
    ENTRY(cmov, .offset = -4, .reads = 1),
    ENTRY(div, .offset = -2, .reads = 1),
    ENTRY(imul, .offset = -4, .reads = 1),
    ENTRY(mulx, .offset = -4, .reads = 1),
    ENTRY(push, .offset = 4, .stack = true),
    ENTRY(push_mem, .offset = -4, .reads = 1),
    ENTRY(pop, .offset = -4, .stack = true, .reads = 1),
    ENTRY(pop_mem, .offset = -4),
    ENTRY(pushf, .offset = 4, .stack = true),
    ENTRY(popf, .offset = -4, .stack = true, .reads = 1),
    ENTRY(call, .offset = 4, .stack = true),
    ENTRY(call_reg, .offset = 4, .stack = true),
    ENTRY(call_mem, .offset = -4, .reads = 1),
    ENTRY(jmp_mem, .offset = -4, .reads = 1),
    ENTRY(ret, .offset = -4, .stack = true, .reads = 1),
    ENTRY(ret_imm, .offset = -4, .stack = true, .reads = 1),
    ENTRY(leave, .offset = -4, .reads = 1),
    ENTRY(enter, .offset = 4, .stack = true),
    ENTRY(movups_load, .offset = -8, .reads = 1),
    ENTRY(movups_store, .offset = -8),
    ENTRY(movaps_store, .offset = 0),
    ENTRY(paddd, .offset = 0, .reads = 1),
    ENTRY(movsd, .offset = -4),
    ENTRY(cvt, .offset = -4, .reads = 1),
    ENTRY(fld, .offset = -4, .reads = 1),
    ENTRY(fstp, .offset = -4),
    ENTRY(fild, .offset = -4, .reads = 1),
    ENTRY(fnstenv, .offset = -8),
    ENTRY(fxsave, .offset = -256),
    ENTRY(movs_to, .offset = -4),
    ENTRY(stos, .offset = -2),
    ENTRY(lods, .offset = -1, .reads = 1),
    ENTRY(scas, .offset = -2, .reads = 1),
    ENTRY(cmps, .offset = -4, .reads = 1),
    ENTRY(rep_movs_to, .offset = -21, .progress = 21),
    ENTRY(rep_movsq_to, .offset = -20, .progress = 2),
    ENTRY(rep_stos, .offset = -21, .progress = 5),
    ENTRY(rep_lods, .offset = -13, .reads = 1, .progress = 13),
    ENTRY(repe_scas, .offset = -9, .reads = 1, .progress = 9),
    ENTRY(sgdt, .offset = -4),
    ENTRY(iret, .offset = -16, .stack = true, .reads = 1),
};

/* --- running --- */

#define SOURCE 1024 /* of copies, in the first page */

/* Memory as each run finds it: what returns and jumps lead to run_end. */
static void fill(const struct test *t, uint64_t pointer)
{
    uint64_t frame[5] = {(uint64_t)run_end, SEL_CODE64, 0x246, V + 512, SEL_DATA64};

    memset(frames, 0, sizeof frames);
    for (unsigned i = 0; i < 512; i++)
        frames[SOURCE + i] = (uint8_t)(i * 7 + 1);
    if (!t->progress && pointer < V + sizeof frames - sizeof frame)
        memcpy(frames + (pointer - V), frame, sizeof frame);
    memcpy(before, frames, sizeof frames);
}

static unsigned element_size(const struct test *t)
{
    return t->code == case_rep_movsq_to ? 8 : t->code == case_rep_stos ? 4 : 1;
}

static void set_registers(const struct test *t, uint64_t pointer)
{
    in = (struct registers) {
        .r15 = 0x1515151515151515,
        .r14 = 0x1414141414141414,
        .r13 = 13,
        .r12 = 12,
        .r11 = 0x1111111111111111,
        .r10 = 0x1010101010101010,
        .r9 = 9,
        .r8 = 8,
        .rdi = pointer,
        .rsi = pointer,
        .rbp = pointer,
        .rbx = pointer,
        .rdx = 0,
        .rcx = t->progress ? 40 : 9,
        .rax = 0,
        .rsp = V + 2048,
        .rflags = 0xad7,
    };
    in.rflags &= ~0x400ull; /* DF */
    in.rflags &= ~0x200ull; /* IF */
    if (t->stack)
        in.rsp = pointer;
    if (t->code == case_rep_stos)
        in.rax = 0x77777777;
    /* Sources of copies, and the other operand of CMPS, lie on the first page. */
    if (t->code == case_movs_to || t->code == case_rep_movs_to || t->code == case_rep_movsq_to)
        in.rsi = V + SOURCE;
    if (t->code == case_cmps)
        in.rsi = V + SOURCE;
    if (t->code == case_fnstenv || t->code == case_fxsave)
        asm volatile("fninit");
}

/* Where it stood: the first byte, or behind what comes before the instruction that faults. */
static bool rip_is_right(const struct test *t)
{
    uint64_t at = out.rip - (uint64_t)t->code;
    if (t->code == case_fstp)
        return at == 2;
    if (t->code == case_call_reg)
        return at == 7;
    return at == 0;
}

static bool registers_are_kept(const struct test *t)
{
    struct registers expected = in;
    if (t->progress) {
        uint64_t bytes = (uint64_t)t->progress * element_size(t);
        expected.rcx -= t->progress;
        if (t->code != case_rep_stos && t->code != case_repe_scas)
            expected.rsi += bytes;
        if (t->code != case_rep_lods)
            expected.rdi += bytes;
    }
    if (t->code == case_call_reg)
        expected.rax = (uint64_t)run_end;
    uint64_t flags = out.rflags & 0xdd5, wanted = expected.rflags & 0xdd5;
    if (t->code == case_repe_scas) /* of the last comparison: 0 with 0 */
        wanted = 0x44;
    return memcmp(&out, &expected, 15 * 8) == 0 && out.rsp == expected.rsp && flags == wanted;
}

/* But for what a string instruction had stored before the fault. */
static bool memory_is_kept(const struct test *t)
{
    unsigned at = (unsigned)(in.rdi - V), size = t->progress * element_size(t);

    if (t->code == case_rep_stos)
        memset(before + at, 0x77, size);
    else if (t->code == case_rep_movs_to || t->code == case_rep_movsq_to)
        memcpy(before + at, before + SOURCE, size);
    return memcmp(frames, before, sizeof frames) == 0;
}

static void run_once(const struct test *t, uint64_t pointer)
{
    fill(t, pointer);
    set_registers(t, pointer);
    run_code(t->code);
    if (t->code == case_fld || t->code == case_fild)
        asm volatile("fninit");
}

static void report(const struct test *t, const char *what)
{
    print("%s, %s: ", t->name, what);
    if (out.vector == 14)
        print("#PF error %lx at %s%lx, %s, registers %s, memory %s\n", out.error,
              out_cr2 < V + 4096 ? "-" : "+",
              out_cr2 < V + 4096 ? V + 4096 - out_cr2 : out_cr2 - (V + 4096),
              rip_is_right(t) ? "at the instruction" : "SOMEWHERE ELSE",
              registers_are_kept(t) ? "kept" : "CHANGED", memory_is_kept(t) ? "kept" : "CHANGED");
    else
        print("vector %lu\n", out.vector);
    asm volatile("fninit");
}

static void set_second(uint64_t bits)
{
    *flat_pte(V + 4096) = bits ? (uint64_t)(frames + 4096) | bits : 0;
    invlpg((void *)(V + 4096));
}

static void run_test(const struct test *t)
{
    uint64_t pointer = V + 4096 + (uint64_t)(int64_t)t->offset;
    bool good = true;

    set_second(P | W);
    for (unsigned i = 0; i < HOT; i++) { /* hot, and all well */
        run_once(t, pointer);
        good &= out.vector == 0x81 || (t->code == case_div && out.vector == 0);
    }
    if (!good)
        print("%s does not work: vector %lu\n", t->name, out.vector);
    set_second(0);
    run_once(t, pointer);
    report(t, "missing");
    set_second(P);
    run_once(t, pointer);
    if (t->reads)
        print("%s, read-only: %s\n", t->name, out.vector == 14 ? "FAULT" : "no fault");
    else
        report(t, "read-only");
}

void guest_main(void)
{
    flat_set_handler(14, on_end);
    flat_set_handler(0x81, on_end);
    flat_set_handler(0, on_end);
    static const uint8_t vectors[] = {0, 14, 0x81};
    for (unsigned i = 0; i < sizeof vectors; i++)
        flat_set_gate(vectors[i], (uint64_t)exception_entries + vectors[i] * 16, SEL_CODE64, 0x8e,
                      1);
    *flat_pte(V) = (uint64_t)frames | P | W;
    invlpg((void *)V);
    for (unsigned i = 0; i < sizeof tests / sizeof tests[0]; i++)
        run_test(&tests[i]);
}
