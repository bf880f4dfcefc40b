/*
 * What the paths outside of plain instructions cost: system calls, exceptions, interrupts, control
 * registers, TLB flushes, state of the FPU, strings, IPIs. Prints nanoseconds of VM time for each,
 * the loop around it subtracted. Needs two CPUs. It has no expected text; bench/paths runs it.
 */
#include "flat.h"

#define KERNEL_GS    0xc0000102
#define FS_BASE      0xc0000100
#define STAR         0xc0000081
#define LSTAR        0xc0000082
#define FMASK        0xc0000084
#define TSC_DEADLINE 0x6e0

/* User code runs from here up, where the same memory is mapped once more. */
#define USER_ALIAS (4ull << 30)

extern uint64_t multiboot_info;
static uint64_t loops, base_ps;                                /* picoseconds of an empty turn */
static uint8_t image[8192] __attribute__((aligned(64), used)); /* in assembly only */
static uint8_t user_stack[8192] __attribute__((aligned(16)));
static uint8_t buffer[2][4 << 20] __attribute__((aligned(4096)));
static uint8_t pages[16][4096] __attribute__((aligned(2 << 20)));

/* --- kernel loops: RBX counts, the rest is the body's --- */

#define LOOP(name, setup, body)                                                                    \
    static void name(void)                                                                         \
    {                                                                                              \
        asm volatile(setup "\n\tmov %0, %%rbx\n.p2align 5\n1:\n\t" body "\n\tdec %%rbx\n\tjnz 1b"  \
                     :                                                                             \
                     : "m"(loops)                                                                  \
                     : "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11",         \
                       "memory", "cc");                                                            \
    }

LOOP(empty, "", "")
LOOP(nops, "", ".rept 10; nop; .endr")
LOOP(cli_sti, "", "cli; sti")
LOOP(pushf_popf, "", "pushfq; popfq")
LOOP(popf_if, "", "pushfq; cli; popfq")
LOOP(swapgs, "", "swapgs; swapgs")
LOOP(wr_fs_base, "mov $0xc0000100, %%ecx; xor %%edx, %%edx; xor %%eax, %%eax", "wrmsr")
LOOP(rd_fs_base, "mov $0xc0000100, %%ecx", "rdmsr")
LOOP(rd_wr_fsbase, "", "rdfsbase %%rax; wrfsbase %%rax")
LOOP(wr_kernel_gs, "mov $0xc0000102, %%ecx; xor %%edx, %%edx; xor %%eax, %%eax", "wrmsr")
LOOP(wr_deadline, "mov $0x6e0, %%ecx; mov $0xff, %%edx; xor %%eax, %%eax", "wrmsr")
LOOP(wr_eoi, "mov $0xfee000b0, %%edi", "movl $0, (%%rdi)")
LOOP(rd_apic, "mov $0xfee00020, %%edi", "movl (%%rdi), %%eax")
LOOP(wr_cr8, "xor %%eax, %%eax", "mov %%rax, %%cr8")
LOOP(rd_tsc, "", "rdtsc")
LOOP(rd_tscp, "", "rdtscp")
LOOP(do_cpuid, "", "mov %%rbx, %%r8; xor %%eax, %%eax; xor %%ecx, %%ecx; cpuid; mov %%r8, %%rbx")
LOOP(rd_cr3, "", "mov %%cr3, %%rax")
LOOP(wr_cr3, "mov %%cr3, %%rax", "mov %%rax, %%cr3")
LOOP(wr_cr3_touch, "mov %%cr3, %%rax; lea pages(%%rip), %%rdi",
     "mov %%rax, %%cr3; mov (%%rdi), %%rcx; mov 4096(%%rdi), %%rcx; mov 8192(%%rdi), %%rcx; "
     "mov 12288(%%rdi), %%rcx")
LOOP(rd_cr0, "", "mov %%cr0, %%rax")
LOOP(clts, "", "clts")
LOOP(do_invlpg, "lea pages(%%rip), %%rdi", "invlpg (%%rdi)")
LOOP(invlpg_touch, "lea pages(%%rip), %%rdi", "invlpg (%%rdi); mov (%%rdi), %%rax")
LOOP(do_pause, "", "pause")
LOOP(lsl, "mov $0x10, %%ecx", "lsl %%ecx, %%eax")
LOOP(mov_ds, "mov $0x10, %%ecx", "mov %%ecx, %%ds")
LOOP(mov_gs, "mov $0x10, %%ecx", "mov %%ecx, %%gs")
LOOP(xsave, "mov $7, %%eax; xor %%edx, %%edx; lea image(%%rip), %%rdi", "xsave64 (%%rdi)")
LOOP(xsaveopt, "mov $7, %%eax; xor %%edx, %%edx; lea image(%%rip), %%rdi", "xsaveopt64 (%%rdi)")
LOOP(xrstor, "mov $7, %%eax; xor %%edx, %%edx; lea image(%%rip), %%rdi; xsave64 (%%rdi)",
     "xrstor64 (%%rdi)")
LOOP(xsavec, "mov $7, %%eax; xor %%edx, %%edx; lea image(%%rip), %%rdi", "xsavec64 (%%rdi)")
LOOP(fxsave, "lea image(%%rip), %%rdi", "fxsave64 (%%rdi)")
LOOP(fxrstor, "lea image(%%rip), %%rdi; fxsave64 (%%rdi)", "fxrstor64 (%%rdi)")
LOOP(ldmxcsr, "lea image(%%rip), %%rdi; stmxcsr (%%rdi)", "ldmxcsr (%%rdi)")
LOOP(lock_xadd, "lea pages(%%rip), %%rdi", "lock xadd %%rax, (%%rdi)")
LOOP(lock_inc, "lea pages(%%rip), %%rdi", "lock incl (%%rdi)")
LOOP(lock_cmpxchg, "lea pages(%%rip), %%rdi", "lock cmpxchg %%rcx, (%%rdi)")
LOOP(xchg, "lea pages(%%rip), %%rdi", "xchg %%rax, (%%rdi)")
LOOP(lock_cmpxchg16b, "lea pages(%%rip), %%rdi; mov %%rbx, %%r8", "lock cmpxchg16b (%%rdi)")
LOOP(lock_bts, "lea pages(%%rip), %%rdi", "lock btsl $3, (%%rdi)")
LOOP(int_same, "", "int $0x81")
LOOP(self_ipi, "sti; mov $0xfee00300, %%edi", "movl $0x40082, (%%rdi)")
LOOP(page_fault, "mov faulting, %%rdi", "mov (%%rdi), %%rax")

#define STRING(name, count, setup, body)                                                           \
    LOOP(name,                                                                                     \
         "lea buffer(%%rip), %%r8; lea buffer+0x400000(%%rip), %%r9; xor %%eax, %%eax;" setup,     \
         "mov %%r8, %%rsi; mov %%r9, %%rdi; mov $" #count ", %%ecx; " body)
STRING(string_setup, 64, "", "nop")
STRING(movsb_16, 16, "", "rep movsb")
STRING(movsb_64, 64, "", "rep movsb")
STRING(movsb_64_unaligned, 64, "add $3, %%r8; add $5, %%r9", "rep movsb")
STRING(movsq_64, 8, "", "rep movsq")
STRING(movsb_4k, 4096, "", "rep movsb")
STRING(movsq_4k, 512, "", "rep movsq")
STRING(movsb_16k, 16384, "", "rep movsb")
STRING(movsb_16k_unaligned, 16384, "add $3, %%r8; add $5, %%r9", "rep movsb")
STRING(movsb_4m, 4194304, "", "rep movsb")
STRING(movsb_4k_back, 4096, "add $8191, %%r8; add $8191, %%r9", "std; rep movsb; cld")
STRING(movsq_4k_back, 512, "add $8184, %%r8; add $8184, %%r9", "std; rep movsq; cld")
STRING(movsb_4k_overlap_up, 4096, "lea 64(%%r8), %%r9", "rep movsb")
STRING(movsb_4k_overlap_1, 4096, "lea 1(%%r8), %%r9", "rep movsb")
STRING(movsb_4k_overlap_down, 4096, "mov %%r8, %%r9; add $64, %%r8", "rep movsb")
STRING(stosb_64, 64, "", "rep stosb")
STRING(stosb_4k, 4096, "", "rep stosb")
STRING(stosq_4k, 512, "", "rep stosq")
STRING(stosb_16k, 16384, "", "rep stosb")
STRING(stosb_4m, 4194304, "", "rep stosb")
STRING(scasb_64, 64, "mov $1, %%eax", "repne scasb")
STRING(scasb_1k, 1024, "mov $1, %%eax", "repne scasb")
STRING(scasb_4k, 4096, "mov $1, %%eax", "repne scasb")
STRING(cmpsb_64, 64, "", "repe cmpsb")
STRING(cmpsb_4k, 4096, "", "repe cmpsb")
STRING(lodsb_4k, 4096, "", "rep lodsb")
STRING(movsb_1, 64, "", "movsb")
STRING(stosq_1, 64, "", "stosq")

/* --- user loops; end with INT 0x80 --- */

#define USER_LOOP(name, setup, body)                                                               \
    static void name(void)                                                                         \
    {                                                                                              \
        asm volatile(setup "\n\tmov loops(%rip), %rbx\n.p2align 5\n1:\n\t" body                    \
                           "\n\tdec %rbx\n\tjnz 1b\n\tint $0x80");                                 \
    }

USER_LOOP(user_empty, "", "")
USER_LOOP(user_syscall, "", "syscall")
USER_LOOP(user_int, "", "int $0x81")
USER_LOOP(user_page_fault, "mov faulting, %rdi", "mov (%rdi), %rax")

extern char syscall_entry[], syscall_swapgs_entry[], int_entry[], ipi_entry[], skip_3_entry[];
uint64_t syscall_user_rsp;
asm("syscall_entry:\n"
    "sysretq\n"
    "syscall_swapgs_entry:\n" /* as Linux does it */
    "swapgs\nmov %rsp, %gs:0\nmov %gs:8, %rsp\n"
    "mov %gs:0, %rsp\nswapgs\nsysretq\n"
    "int_entry:\n"
    "iretq\n"
    "ipi_entry:\n"
    "push %rdi\nmov $0xfee000b0, %edi\nmovl $0, (%rdi)\npop %rdi\niretq\n"
    "skip_3_entry:\n" /* skips "mov (%rdi), %rax" */
    "push %rax\nmov %cr2, %rax\npop %rax\n"
    "add $3, 8(%rsp)\nadd $8, %rsp\niretq\n");

uint8_t *faulting;

/* --- measuring --- */

static void report(const char *what, uint64_t ps)
{
    print("%s", what);
    unsigned length = 0;
    while (what[length])
        length++;
    while (length++ < 28)
        print(" ");
    print("%lu.%lu%lu ns\n", ps / 1000, ps / 100 % 10, ps / 10 % 10);
}

/* The option "--append WORD": only rows whose names begin with it, for longer, as a profiler likes.
 */
static bool wanted(const char *what, uint64_t *count)
{
    const uint32_t *info = (const uint32_t *)multiboot_info;
    const char *word = info[0] & 4 ? (const char *)(uint64_t)info[4] : "";

    *count *= *word ? 20 : 1;
    while (*word && *word == *what)
        word++, what++;
    return !*word;
}

/* Picoseconds of a turn, the best of many short runs: other work on the host does not count. */
static uint64_t measure(void (*run)(void), bool user, uint64_t count)
{
    uint64_t best = ~0ull;
    loops = count / 20 ? count / 20 : 1;
    for (unsigned i = 0; i < 20; i++) {
        uint64_t start = rdtsc();
        if (user)
            flat_call_user((void (*)(void))((uint64_t)run + USER_ALIAS),
                           user_stack + sizeof user_stack - 8);
        else
            run();
        uint64_t ps = (rdtsc() - start) * 1000 / loops;
        if (ps < best)
            best = ps;
    }
    asm volatile("cli");
    return best;
}

static void row(const char *what, void (*run)(void), uint64_t count)
{
    if (!wanted(what, &count))
        return;
    uint64_t ps = measure(run, false, count);
    report(what, ps > base_ps ? ps - base_ps : 0);
}

static void user_row(const char *what, void (*run)(void), uint64_t count)
{
    if (!wanted(what, &count))
        return;
    uint64_t ps = measure(run, true, count);
    report(what, ps > base_ps ? ps - base_ps : 0);
}

static bool has(uint32_t leaf, uint32_t sub, unsigned reg, unsigned bit)
{
    uint32_t r[4];
    cpuid(leaf, sub, r);
    return r[reg] >> bit & 1;
}

/* As operating systems do it: the kernel's pages are global, those of user code are not. */
static void set_up_pages(void)
{
    static uint64_t user_directory[512] __attribute__((aligned(4096)));
    for (unsigned i = 0; i < 16; i++)
        user_directory[i] = page_directories[i];
    pdpt[USER_ALIAS >> 30] = (uint64_t)user_directory | 7;
    for (unsigned i = 0; i < 512; i++)
        page_directories[i] |= 1 << 8;
    write_cr4(read_cr4() | 1 << 7);
}

static void set_up(void)
{
    static uint64_t per_cpu[2];
    flat_apic_enable();
    set_up_pages();
    wrmsr(STAR, (uint64_t)SEL_CODE32_USER << 48 | (uint64_t)SEL_CODE64 << 32);
    wrmsr(LSTAR, (uint64_t)syscall_entry);
    wrmsr(FMASK, 0x47700);
    per_cpu[1] = (uint64_t)(user_stack + 4096);
    wrmsr(KERNEL_GS, (uint64_t)per_cpu);
    flat_set_gate(0x81, (uint64_t)int_entry, SEL_CODE64, 0xee, 0);
    flat_set_gate(0x82, (uint64_t)ipi_entry, SEL_CODE64, 0x8e, 0);
    write_cr4(read_cr4() | 1 << 16 | 1 << 18); /* FSGSBASE, OSXSAVE */
    asm volatile("xsetbv" : : "c"(0), "a"(has(1, 0, 2, 28) ? 7 : 3), "d"(0));
    faulting = pages[8];
    *flat_pte((uint64_t)faulting) &= ~1ull;
    invlpg(faulting);
    for (unsigned i = 0; i < 2; i++)
        memset(buffer[i], 0, sizeof buffer[i]);
}

#define N                50000
#define ROW(name, count) row(#name, name, count)

static void instructions(void)
{
    ROW(nops, N);
    ROW(cli_sti, N);
    ROW(pushf_popf, N);
    ROW(popf_if, N);
    ROW(swapgs, N);
    ROW(wr_fs_base, N);
    ROW(rd_fs_base, N);
    ROW(rd_wr_fsbase, N);
    ROW(wr_kernel_gs, N);
    APIC(0x320) = 0x40083;
    ROW(wr_deadline, N);
    wrmsr(TSC_DEADLINE, 0);
    APIC(0x320) = 0x10000;
    ROW(wr_eoi, N);
    ROW(rd_apic, N);
    ROW(wr_cr8, N);
    ROW(rd_tsc, N);
    ROW(rd_tscp, N);
    ROW(do_cpuid, N);
    ROW(rd_cr0, N);
    ROW(clts, N);
    ROW(rd_cr3, N);
    ROW(wr_cr3, N);
    ROW(wr_cr3_touch, N);
    ROW(do_invlpg, N);
    ROW(invlpg_touch, N);
    ROW(do_pause, N);
    ROW(lsl, N);
    ROW(mov_ds, N);
    ROW(mov_gs, N);
    wrmsr(0xc0000101, 0);
    ROW(xsave, N);
    ROW(xsavec, N);
    ROW(xsaveopt, N);
    ROW(xrstor, N);
    ROW(fxsave, N);
    ROW(fxrstor, N);
    ROW(ldmxcsr, N);
    ROW(lock_xadd, N);
    ROW(lock_inc, N);
    ROW(lock_cmpxchg, N);
    ROW(lock_cmpxchg16b, N);
    ROW(lock_bts, N);
    ROW(xchg, N);
}

static void strings(void)
{
    base_ps = measure(string_setup, false, N);
    ROW(movsb_1, N);
    ROW(stosq_1, N);
    ROW(movsb_16, N);
    ROW(movsb_64, N);
    ROW(movsb_64_unaligned, N);
    ROW(movsq_64, N);
    ROW(movsb_4k, 5000);
    ROW(movsq_4k, 5000);
    ROW(movsb_4k_back, 500);
    ROW(movsq_4k_back, 500);
    ROW(movsb_4k_overlap_up, 2000);
    ROW(movsb_4k_overlap_1, 500);
    ROW(movsb_4k_overlap_down, 2000);
    ROW(movsb_16k, 2000);
    ROW(movsb_16k_unaligned, 2000);
    ROW(movsb_4m, 10);
    ROW(stosb_64, N);
    ROW(stosb_4k, 5000);
    ROW(stosq_4k, 5000);
    ROW(stosb_16k, 2000);
    ROW(stosb_4m, 10);
    ROW(scasb_64, N);
    ROW(scasb_1k, 2000);
    ROW(scasb_4k, 500);
    ROW(cmpsb_64, N);
    ROW(cmpsb_4k, 500);
    ROW(lodsb_4k, 500);
}

static void events(void)
{
    base_ps = measure(empty, false, N);
    row("INT same level", int_same, N);
    row("self IPI", self_ipi, N);
    flat_set_gate(14, (uint64_t)skip_3_entry, SEL_CODE64, 0x8e, 0);
    row("page fault, kernel", page_fault, N);
    base_ps = measure(user_empty, true, N);
    user_row("SYSCALL, SYSRET", user_syscall, N);
    wrmsr(LSTAR, (uint64_t)syscall_swapgs_entry);
    user_row("the same with SWAPGS", user_syscall, N);
    user_row("INT from user mode", user_int, N);
    user_row("page fault, user mode", user_page_fault, N);
}

/* --- waking --- */

static volatile uint64_t woken, ipis;

static void wake_up(struct frame *frame)
{
    (void)frame;
    woken = rdtsc();
    APIC(0xb0) = 0;
}

static void count_ipi(struct frame *frame)
{
    (void)frame;
    ipis++;
    APIC(0xb0) = 0;
}

#define ROUNDS 301

static void report_latencies(const char *what, uint64_t ns[ROUNDS])
{
    for (unsigned i = 1; i < ROUNDS; i++) {
        uint64_t one = ns[i];
        unsigned j = i;
        for (; j && ns[j - 1] > one; j--)
            ns[j] = ns[j - 1];
        ns[j] = one;
    }
    report(what, ns[ROUNDS / 2] * 1000);
    report("  of 100 the longest", ns[ROUNDS * 99 / 100] * 1000);
}

/* From the timer's deadline to the handler's RDTSC: halted, and in a loop. */
static void timer_latency(const char *what, bool halted)
{
    static uint64_t ns[ROUNDS];
    uint64_t count;
    if (!wanted(what, &count))
        return;
    flat_set_handler(0x84, wake_up);
    APIC(0x320) = 0x40084;
    for (unsigned i = 0; i < ROUNDS; i++) {
        uint64_t deadline = rdtsc() + 300000;
        woken = 0;
        wrmsr(TSC_DEADLINE, deadline);
        while (!woken) {
            if (halted)
                asm volatile("sti; hlt; cli");
            else
                asm volatile("sti; nop; cli");
        }
        ns[i] = woken - deadline;
    }
    report_latencies(what, ns);
    APIC(0x320) = 0x10000;
}

static volatile bool ap_spins;

static void other_cpu(void *argument)
{
    (void)argument;
    flat_apic_enable();
    for (;;) {
        if (ap_spins)
            asm volatile("sti; nop");
        else
            asm volatile("sti; hlt");
    }
}

static void ipi_latency(const char *what)
{
    static uint64_t ns[ROUNDS];
    uint64_t count = ROUNDS;
    if (!wanted(what, &count))
        return;
    while (count) {
        for (unsigned i = 0; i < ROUNDS; i++) {
            uint64_t before = ipis, start = rdtsc();
            APIC(0x310) = 1 << 24;
            APIC(0x300) = 0x4085;
            while (ipis == before)
                pause();
            ns[i] = rdtsc() - start;
        }
        count -= ROUNDS;
    }
    report_latencies(what, ns);
}

void guest_main(void)
{
    set_up();
    base_ps = measure(empty, false, N);
    report("empty loop", base_ps);
    instructions();
    strings();
    events();
    timer_latency("timer to a halted CPU", true);
    timer_latency("timer to a running CPU", false);
    flat_set_handler(0x85, count_ipi);
    flat_start_ap(1, other_cpu, NULL);
    ipi_latency("IPI to a halted CPU, seen");
    ap_spins = true;
    ipi_latency("IPI to a running CPU, seen");
    debug_exit(0);
}
