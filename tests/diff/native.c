/*
 * Runs a sequence on the real CPU, in this process: a signal handler puts the state into the frame
 * that it returns to, and the exception that ends the run comes back as a signal with the whole
 * state, the vector, the error code and CR2 in its frame. Linux, x86-64.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <asm/prctl.h>
#include <cpuid.h>
#include <ucontext.h>
#include <unistd.h>

#include "base/bits.h"
#include "x86/defs.h"

#include "diff.h"

#define ALT_STACK_SIZE 65536
#define XSAVE_MAX      8192
#define YMM_OFFSET     576
#define XSTATE_BV      512

enum phase { IDLE, START, RUN };

struct diff_native {
    enum phase phase;
    const struct diff_input *input;
    struct diff_end *end;
    uint64_t runs, ticked; /* the watchdog's */
    gregset_t host;
    size_t xsave_size;
    uint8_t host_xsave[XSAVE_MAX];
    uint8_t *code; /* writable view of the code pages */
    void *alt_stack;
    void (*tick)(void *context);
    void *tick_context;
};

/* Signal handlers have no argument of ours: one runner per process, and this is it. */
static struct diff_native *current;

static const int greg_of[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                REG_R12, REG_R13, REG_R14, REG_R15};

#define FLAGS_COMPARED                                                                             \
    (X86_STATUS_FLAGS | X86_TF | X86_DF | X86_NT | X86_AC | X86_ID | X86_IF | X86_IOPL)

static uint8_t *xsave_of(ucontext_t *uc)
{
    return (uint8_t *)uc->uc_mcontext.fpregs;
}

static void fpu_to_frame(const struct x86_fpu *fpu, uint8_t *x)
{
    store_le16(x, fpu->fcw);
    store_le16(x + 2, fpu->fsw);
    store_le16(x + 4, fpu->ftw);
    store_le16(x + 6, 0);
    memset(x + 8, 0, 16);
    store_le32(x + 24, fpu->mxcsr);
    memcpy(x + 32, fpu->st, 128);
    for (unsigned i = 0; i < 16; i++) {
        memcpy(x + 160 + i * 16, fpu->ymm[i], 16);
        memcpy(x + YMM_OFFSET + i * 16, fpu->ymm[i] + 16, 16);
    }
    store_le64(x + XSTATE_BV, 7);
}

/* A component whose bit is clear is in its initial state, whatever its bytes are. */
static void fpu_from_frame(const uint8_t *x, struct x86_fpu *fpu)
{
    uint64_t present = load_le64(x + XSTATE_BV);

    memset(fpu, 0, sizeof *fpu);
    fpu->fcw = present & 1 ? load_le16(x) : 0x37f;
    fpu->mxcsr = load_le32(x + 24);
    if (present & 1) {
        fpu->fsw = load_le16(x + 2);
        fpu->ftw = x[4];
        for (unsigned i = 0; i < 8; i++)
            memcpy(fpu->st[i], x + 32 + i * 16, 10);
    }
    for (unsigned i = 0; i < 16; i++) {
        if (present & 2)
            memcpy(fpu->ymm[i], x + 160 + i * 16, 16);
        if (present & 4)
            memcpy(fpu->ymm[i] + 16, x + YMM_OFFSET + i * 16, 16);
    }
}

static void start(struct diff_native *n, ucontext_t *uc)
{
    const struct diff_state *s = &n->input->state;
    greg_t *g = uc->uc_mcontext.gregs;

    memcpy(n->host, g, sizeof n->host);
    memcpy(n->host_xsave, xsave_of(uc), n->xsave_size);
    for (unsigned i = 0; i < 16; i++)
        g[greg_of[i]] = (greg_t)s->gpr[i];
    g[REG_RIP] = (greg_t)s->rip;
    if (n->input->code_size == 4) /* CS is the lowest of the selectors there: Linux's __USER32_CS */
        g[REG_CSGSFS] = (g[REG_CSGSFS] & ~0xffffll) | 0x23;
    g[REG_EFL] = (greg_t)s->rflags;
    fpu_to_frame(&s->fpu, xsave_of(uc));
    n->phase = RUN;
}

static void finish(struct diff_native *n, ucontext_t *uc)
{
    struct diff_end *end = n->end;
    greg_t *g = uc->uc_mcontext.gregs;

    for (unsigned i = 0; i < 16; i++)
        end->state.gpr[i] = (uint64_t)g[greg_of[i]];
    end->state.rip = (uint64_t)g[REG_RIP];
    end->state.rflags = (uint64_t)g[REG_EFL] & FLAGS_COMPARED;
    fpu_from_frame(xsave_of(uc), &end->state.fpu);
    end->vector = (unsigned)g[REG_TRAPNO];
    end->error = end->vector >= 10 && end->vector <= 14 ? (uint64_t)g[REG_ERR] : 0;
    end->cr2 = end->vector == X86_PF_FAULT ? (uint64_t)g[REG_CR2] : 0;
    /* Linux shows every fault on its own half as one on a page that is there. */
    if (end->cr2 >> 63)
        end->error &= ~X86_PFERR_P;
    memcpy(g, n->host, sizeof n->host);
    memcpy(xsave_of(uc), n->host_xsave, n->xsave_size);
    n->phase = IDLE;
}

/* Returning from a signal restores neither NT nor ID. */
static void keep_flags(ucontext_t *uc)
{
    uint64_t flags = (uint64_t)uc->uc_mcontext.gregs[REG_EFL] & (X86_NT | X86_ID);
    __asm__ volatile("pushfq\n\torq %0, (%%rsp)\n\tpopfq" : : "r"(flags) : "memory", "cc");
}

static void handler(int signal, siginfo_t *info, void *context)
{
    struct diff_native *n = current;
    ucontext_t *uc = context;

    /* The sequence's AC, NT and ID are still on, and returning from a signal does not clear them.
     */
    __asm__ volatile("pushfq\n\tandl $~0x244000, (%%rsp)\n\tpopfq" : : : "memory", "cc");
    if (signal == SIGALRM) {
        bool stuck = n->phase == RUN && n->ticked == n->runs;
        n->ticked = n->runs;
        if (n->tick)
            n->tick(n->tick_context);
        if (!stuck) {
            keep_flags(uc);
            return;
        }
        n->end->timeout = true;
        finish(n, uc);
    } else if (n->phase == START) {
        start(n, uc);
    } else if (n->phase == RUN) {
        finish(n, uc);
    } else {
        static const char text[] = "diff: stray signal in the harness\n";
        (void)!write(2, text, sizeof text - 1);
        _exit(70);
    }
}

static int map(uint64_t address, size_t size, int protection)
{
    void *p = mmap((void *)address, size, protection,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_POPULATE, -1, 0);
    return p == (void *)address ? 0 : -errno;
}

/* The code is written through another mapping of the same memory. */
static int map_code(struct diff_native *n)
{
    int fd = memfd_create("diff-code", MFD_CLOEXEC);
    int error = 0;

    if (fd < 0 || ftruncate(fd, CODE_SIZE))
        return -errno;
    n->code = mmap(NULL, CODE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (n->code == MAP_FAILED ||
        mmap((void *)CODE_BASE, CODE_SIZE, PROT_READ | PROT_EXEC,
             MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_POPULATE, fd, 0) != (void *)CODE_BASE)
        error = -errno;
    close(fd);
    return error;
}

static int map_memory(struct diff_native *n)
{
    int error = map(DATA_BASE, DATA_RW, PROT_READ | PROT_WRITE);
    if (!error)
        error = map(DATA_BASE + DATA_RW, DATA_RO, PROT_READ);
    if (!error)
        error = map(DATA_BASE + DATA_RW + DATA_RO + DATA_HOLE, DATA_TAIL, PROT_READ | PROT_WRITE);
    if (!error)
        error = map(STACK_BASE, STACK_SIZE, PROT_READ | PROT_WRITE);
    return error ? error : map_code(n);
}

static int catch_signals(struct diff_native *n)
{
    static const int signals[] = {SIGTRAP, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGALRM};
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    stack_t stack = {.ss_sp = n->alt_stack, .ss_size = ALT_STACK_SIZE};

    sigfillset(&action.sa_mask);
    if (sigaltstack(&stack, NULL))
        return -errno;
    for (unsigned i = 0; i < ARRAY_COUNT(signals); i++)
        if (sigaction(signals[i], &action, NULL))
            return -errno;
    return 0;
}

int diff_native_create(struct diff_native **out)
{
    struct diff_native *n = calloc(1, sizeof *n);
    struct itimerval tick = {{0, 200000}, {0, 200000}};
    unsigned a, b, c, d;
    int error;

    if (!n)
        return -ENOMEM;
    n->alt_stack = malloc(ALT_STACK_SIZE);
    __cpuid_count(0xd, 0, a, b, c, d);
    n->xsave_size = MIN(b, XSAVE_MAX);
    current = n;
    /* Compatibility mode needs them; 64-bit mode does not care. Linux's __USER_DS. */
    __asm__ volatile("movl %0, %%ds\n\tmovl %0, %%es" : : "r"(0x2b));
    error = n->alt_stack ? map_memory(n) : -ENOMEM;
    if (!error)
        error = catch_signals(n);
    if (!error && setitimer(ITIMER_REAL, &tick, NULL))
        error = -errno;
    if (error) {
        diff_native_destroy(n);
        return error;
    }
    *out = n;
    return 0;
}

void diff_native_on_tick(struct diff_native *n, void (*tick)(void *context), void *context)
{
    n->tick_context = context;
    n->tick = tick;
}

void diff_native_destroy(struct diff_native *n)
{
    struct itimerval none = {{0, 0}, {0, 0}};

    setitimer(ITIMER_REAL, &none, NULL);
    munmap((void *)DATA_BASE, DATA_RW + DATA_RO + DATA_HOLE + DATA_TAIL);
    munmap((void *)STACK_BASE, STACK_SIZE);
    munmap((void *)CODE_BASE, CODE_SIZE);
    if (n->code)
        munmap(n->code, CODE_SIZE);
    free(n->alt_stack);
    free(n);
    current = NULL;
}

/* The read-only page keeps what it has: the generator leaves it zero. */
static void copy_memory(bool in, uint8_t *memory)
{
    static const struct {
        uint64_t address;
        size_t size;
        bool writable;
    } area[] = {{DATA_BASE, DATA_RW, true},
                {DATA_BASE + DATA_RW, DATA_RO, false},
                {DATA_BASE + DATA_RW + DATA_RO + DATA_HOLE, DATA_TAIL, true},
                {STACK_BASE, STACK_SIZE, true}};

    for (unsigned i = 0; i < ARRAY_COUNT(area); memory += area[i].size, i++) {
        if (!in)
            memcpy(memory, (void *)area[i].address, area[i].size);
        else if (area[i].writable)
            memcpy((void *)area[i].address, memory, area[i].size);
    }
}

void diff_native_run(struct diff_native *n, const struct diff_input *input, struct diff_end *end)
{
    copy_memory(true, (uint8_t *)input->memory);
    memcpy(n->code, input->code, CODE_SIZE);
    end->timeout = false;
    syscall(SYS_arch_prctl, ARCH_SET_GS, GS_BASE);
    n->input = input;
    n->end = end;
    n->runs++;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    n->phase = START;
    __asm__ volatile("int3" : : : "memory");
    copy_memory(false, end->memory);
}
