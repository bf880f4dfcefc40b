/*
 * diff_cpu: the differential test's driver. Worker processes run sequences; each sequence has its
 * own seed, so that a failure is repeated by --seed S --first N --sequences 1.
 */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bits.h"
#include "x86/defs.h"

#include "diff.h"

#define CASES_WANTED  100
#define FAILURES_MAX  20
#define REPORT_LENGTH 4096

struct options {
    uint64_t seed, first, sequences;
    unsigned jobs;
    const char *coverage, *only;
    int group; /* enum diff_group; -1: all */
    unsigned code_size;
};

/* In memory that the workers share with their parent. */
struct shared {
    uint64_t done, skipped, instructions, failures;
    uint64_t ends[32];    /* by vector */
    uint64_t running[64]; /* each worker's present sequence */
    uint64_t cases[];     /* for each form */
};

struct worker {
    const struct options *options;
    struct shared *shared;
    struct diff_native *native;
    struct diff_emulated *emulated;
    struct diff_forms forms;
    struct diff_sequence sequence;
    struct diff_translated *translated; /* NULL for 32-bit code */
    struct diff_end real, ours, again;
    unsigned *chosen; /* the forms to choose from */
    unsigned chosen_count;
    bool strayed; /* into the middle of an instruction: no telling what that would run */
    uint16_t hits[DIFF_INSNS_MAX];
};

/* --- comparing --- */

static const char *const gpr_names[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                          "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};

/*
 * Known deviations, all of unmasked overflow or underflow: the host always runs masked, so x87 has
 * the masked result and not the scaled one, and the precision flag (with DPPS: the other flags too)
 * is that of the masked result. See src/x86/x87.c and vector_exec.c.
 */
#define OVERFLOW_UNDERFLOW 0x18u
#define FSW_LOOSE          0x0220u /* C1 and the precision flag */

static bool same_x87(const struct x86_fpu *a, const struct x86_fpu *b)
{
    unsigned loose = a->fsw & ~a->fcw & OVERFLOW_UNDERFLOW ? FSW_LOOSE : 0;

    return a->fcw == b->fcw && a->ftw == b->ftw && ((a->fsw ^ b->fsw) & ~loose) == 0 &&
           (loose || memcmp(a->st, b->st, sizeof a->st) == 0);
}

static bool same_mxcsr(const struct diff_end *a, const struct diff_end *b)
{
    unsigned real = a->state.fpu.mxcsr, ours = b->state.fpu.mxcsr;
    bool loose = a->vector == X86_XM && ours & ~(ours >> 7) & OVERFLOW_UNDERFLOW;

    return ((real ^ ours) & ~(loose ? 0x3fu : 0)) == 0;
}

static bool same_state(const struct diff_end *a, const struct diff_end *b)
{
    return a->timeout == b->timeout && a->state.rip == b->state.rip &&
           a->state.rflags == b->state.rflags &&
           memcmp(a->state.gpr, b->state.gpr, sizeof a->state.gpr) == 0 &&
           memcmp(a->memory, b->memory, MEMORY_SIZE) == 0 &&
           memcmp(a->state.fpu.ymm, b->state.fpu.ymm, sizeof a->state.fpu.ymm) == 0 &&
           same_x87(&a->state.fpu, &b->state.fpu) && same_mxcsr(a, b);
}

static bool is_memory_fault(unsigned vector)
{
    return vector == X86_SS_FAULT || vector == X86_GP || vector == X86_PF_FAULT ||
           vector == X86_AC_FAULT;
}

/* The instruction at `rip`, if it is one of the sequence's. */
static bool insn_at(const struct worker *w, uint64_t rip, struct diff_insn *insn)
{
    uint64_t offset = rip - CODE_BASE;

    return offset < w->sequence.length &&
           diff_decode(&w->forms, w->sequence.input.code + offset, 15, insn);
}

/* It has two operands that may fault. */
static bool either_may_fault(const struct worker *w, uint64_t rip)
{
    struct diff_insn insn;

    return insn_at(w, rip, &insn) && diff_policy_either_fault(&insn);
}

/* In 32-bit code: AMD's refuse an operand that goes on behind 4 GiB, Intel's look for its page. */
static bool wraps_around(const struct worker *w)
{
    return w->options->code_size == 4 && w->real.vector == X86_PF_FAULT &&
           w->real.cr2 > UINT32_MAX - 32 && w->real.cr2 <= UINT32_MAX;
}

/* Ended by a fault about which this host's processor and AMD's are known to differ. */
static bool host_cannot_tell(const struct worker *w)
{
    struct diff_insn insn;

    return __builtin_cpu_is("intel") && is_memory_fault(w->ours.vector) &&
           insn_at(w, w->ours.state.rip, &insn) &&
           (wraps_around(w) || diff_policy_differs_on_intel(&insn, w->ours.vector));
}

/* No program has the last page of the lower half; whether it is present is the host kernel's
 * affair.
 */
static bool same_page_fault(const struct diff_end *a, const struct diff_end *b)
{
    bool last = a->vector == X86_PF_FAULT && a->cr2 >> 12 == 0x7ffffffff;

    return a->cr2 == b->cr2 && ((a->error ^ b->error) & ~(last ? 1ull : 0)) == 0;
}

static bool same(const struct worker *w, const struct diff_end *a, const struct diff_end *b)
{
    if (!same_state(a, b))
        return false;
    if (a->vector == b->vector && same_page_fault(a, b))
        return true;
    return is_memory_fault(a->vector) && is_memory_fault(b->vector) &&
           either_may_fault(w, a->state.rip);
}

static void print_hex(const char *name, const uint8_t *real, const uint8_t *ours, unsigned size)
{
    if (memcmp(real, ours, size) == 0)
        return;
    printf("  %-8s right ", name);
    for (unsigned i = 0; i < size; i++)
        printf("%02x", real[size - 1 - i]);
    printf("\n           wrong ");
    for (unsigned i = 0; i < size; i++)
        printf("%02x", ours[size - 1 - i]);
    printf("\n");
}

static void print_number(const char *name, uint64_t real, uint64_t ours)
{
    if (real != ours)
        printf("  %-8s right %016llx wrong %016llx\n", name, (unsigned long long)real,
               (unsigned long long)ours);
}

static void print_fpu(const struct x86_fpu *real, const struct x86_fpu *ours)
{
    char name[16];

    for (unsigned i = 0; i < 16; i++) {
        snprintf(name, sizeof name, "ymm%u", i);
        print_hex(name, real->ymm[i], ours->ymm[i], 32);
    }
    for (unsigned i = 0; i < 8; i++) {
        snprintf(name, sizeof name, "st%u", i);
        print_hex(name, real->st[i], ours->st[i], 16);
    }
    print_number("fcw", real->fcw, ours->fcw);
    print_number("fsw", real->fsw, ours->fsw);
    print_number("ftw", real->ftw, ours->ftw);
    print_number("mxcsr", real->mxcsr, ours->mxcsr);
}

static void print_differences(const struct diff_end *real, const struct diff_end *ours)
{
    unsigned bytes = 0;

    print_number("timeout", real->timeout, ours->timeout);
    print_number("vector", real->vector, ours->vector);
    print_number("error", real->error, ours->error);
    print_number("cr2", real->cr2, ours->cr2);
    print_number("rip", real->state.rip, ours->state.rip);
    print_number("rflags", real->state.rflags, ours->state.rflags);
    for (unsigned i = 0; i < 16; i++)
        print_number(gpr_names[i], real->state.gpr[i], ours->state.gpr[i]);
    print_fpu(&real->state.fpu, &ours->state.fpu);
    for (unsigned i = 0; i < MEMORY_SIZE; i++)
        if (real->memory[i] != ours->memory[i] && bytes++ < 8)
            printf("  memory[%04x] right %02x wrong %02x\n", i, real->memory[i], ours->memory[i]);
}

/* --- the translator against the interpreter --- */

/* With nothing left out: the same host instructions on the same operands. */
static bool identical(const struct diff_end *a, const struct diff_end *b)
{
    return a->timeout == b->timeout && a->vector == b->vector && a->error == b->error &&
           a->cr2 == b->cr2 && a->state.rip == b->state.rip && a->state.rflags == b->state.rflags &&
           memcmp(a->state.gpr, b->state.gpr, sizeof a->state.gpr) == 0 &&
           memcmp(&a->state.fpu, &b->state.fpu, sizeof a->state.fpu) == 0 &&
           memcmp(a->memory, b->memory, MEMORY_SIZE) == 0;
}

/* Translated, and then by the translations that are there and linked. */
static bool translates(struct worker *w, const struct diff_input *input)
{
    if (!w->translated)
        return true;
    for (unsigned i = 0; i < 2; i++) {
        diff_translated_run(w->translated, input, i, &w->again);
        if (!identical(&w->ours, &w->again))
            return false;
    }
    return true;
}

/* --- one sequence --- */

/* Finds which instruction a step was at. */
static void seen(void *context, uint64_t rip)
{
    struct worker *w = context;
    const struct diff_sequence *s = &w->sequence;
    uint64_t offset = rip - CODE_BASE;
    unsigned low = 0, high = s->count;

    while (low < high) {
        unsigned middle = (low + high) / 2;
        if (s->offset[middle] < offset)
            low = middle + 1;
        else
            high = middle;
    }
    if (s->offset[low] != offset)
        w->strayed |= offset < s->length;
    else if (low < s->count && w->hits[low] < UINT16_MAX)
        w->hits[low]++;
}

/* True when all agree about the first `count` instructions. */
static bool agrees(struct worker *w, unsigned count)
{
    struct diff_input input = w->sequence.input;

    memset(input.code + w->sequence.offset[count], 0xcc, CODE_SIZE - w->sequence.offset[count]);
    diff_emulated_run(w->emulated, &input, &w->ours, NULL, NULL);
    if (w->ours.timeout)
        return true;
    diff_native_run(w->native, &input, &w->real);
    return same(w, &w->real, &w->ours) && translates(w, &input);
}

static void print_insn(const struct diff_sequence *s, unsigned i)
{
    ZydisDisassembledInstruction text;
    unsigned length = s->offset[i + 1] - s->offset[i];

    ZydisDisassembleIntel(s->input.code_size == 8 ? ZYDIS_MACHINE_MODE_LONG_64
                                                  : ZYDIS_MACHINE_MODE_LEGACY_32,
                          CODE_BASE + s->offset[i], s->input.code + s->offset[i], length, &text);
    printf("  %s   [", text.text);
    for (unsigned k = 0; k < length; k++)
        printf("%02x", s->input.code[s->offset[i] + k]);
    printf("]\n");
}

/* Shortens the sequence to where the two part, and shows state and instruction there. */
static void report(struct worker *w, uint64_t number)
{
    const struct diff_sequence *s = &w->sequence;
    unsigned n = 0;

    while (n < s->count && agrees(w, n))
        n++;
    printf("FAIL sequence %llu: after %u instructions (--seed %llu --first %llu --sequences 1)\n",
           (unsigned long long)number, n, (unsigned long long)w->options->seed,
           (unsigned long long)number);
    if (same(w, &w->real, &w->ours)) {
        printf("  interpreter (right) and translator (wrong) differ\n");
        print_differences(&w->ours, &w->again);
    } else {
        printf("  the real CPU (right) and the interpreter (wrong) differ\n");
        print_differences(&w->real, &w->ours);
    }
    if (n) {
        static struct diff_end before;
        struct diff_input input = s->input;
        memset(input.code + s->offset[n - 1], 0xcc, CODE_SIZE - s->offset[n - 1]);
        print_insn(s, n - 1);
        diff_native_run(w->native, &input, &before);
        printf("  before: rflags %llx", (unsigned long long)before.state.rflags);
        for (unsigned i = 0; i < 16; i++)
            printf(" %s %llx", gpr_names[i], (unsigned long long)before.state.gpr[i]);
        printf("\n");
    }
    fflush(stdout);
}

static void count_cases(struct worker *w)
{
    for (unsigned i = 0; i < w->sequence.count; i++) {
        unsigned form = w->sequence.form[i];
        if (!w->hits[i])
            continue;
        __atomic_fetch_add(&w->shared->instructions, w->hits[i], __ATOMIC_RELAXED);
        if (form == UINT_MAX)
            continue;
        __atomic_fetch_add(&w->shared->cases[form], 1, __ATOMIC_RELAXED);
    }
}

/* A sequence's number alone decides, so that it can be repeated alone. */
static unsigned pick(void *context, struct diff_random *r)
{
    struct worker *w = context;
    return w->chosen[diff_below(r, w->chosen_count)];
}

static void run_sequence(struct worker *w, uint64_t number)
{
    struct diff_random r = {w->options->seed * 0x100000001b3ull + number};

    diff_random(&r);
    diff_generate(&w->sequence, &w->forms, &r, pick, w);
    memset(w->hits, 0, sizeof w->hits);
    w->strayed = false;
    diff_emulated_run(w->emulated, &w->sequence.input, &w->ours, seen, w);
    if (w->ours.timeout || w->strayed) {
        __atomic_fetch_add(&w->shared->skipped, 1, __ATOMIC_RELAXED);
        return;
    }
    diff_native_run(w->native, &w->sequence.input, &w->real);
    if (same(w, &w->real, &w->ours) && translates(w, &w->sequence.input)) {
        __atomic_fetch_add(&w->shared->ends[w->real.vector & 31], 1, __ATOMIC_RELAXED);
        count_cases(w);
    } else if (host_cannot_tell(w)) {
        __atomic_fetch_add(&w->shared->skipped, 1, __ATOMIC_RELAXED);
    } else if (__atomic_fetch_add(&w->shared->failures, 1, __ATOMIC_RELAXED) < FAILURES_MAX) {
        report(w, number);
    }
}

/* --- workers --- */

static void choose_forms(struct worker *w)
{
    const char *only = w->options->only;

    for (unsigned i = 0; i < w->forms.count; i++)
        if ((!only || strstr(w->forms.form[i].name, only)) &&
            (w->options->group < 0 || w->options->group == (int)w->forms.form[i].group))
            w->chosen[w->chosen_count++] = i;
}

static int worker_create(struct worker *w)
{
    int error = diff_emulated_create(&w->emulated);
    if (!error)
        error =
            diff_forms_create(&w->forms, diff_emulated_decoder(w->emulated), w->options->code_size);
    if (error)
        return error;
    w->chosen = calloc(w->forms.count + 1, sizeof *w->chosen);
    if (!w->chosen)
        return -ENOMEM;
    choose_forms(w);
    return w->chosen_count ? 0 : -ENOENT;
}

static void tick(void *translated)
{
    diff_translated_tick(translated);
}

/* What must be made in the worker's process. */
static int runners_create(struct worker *w)
{
    int error = diff_native_create(&w->native);

    if (error || w->options->code_size != 8)
        return error;
    error = diff_translated_create(&w->translated);
    if (!error)
        diff_native_on_tick(w->native, tick, w->translated);
    return error;
}

static void runners_destroy(struct worker *w)
{
    diff_native_destroy(w->native);
    if (w->translated)
        diff_translated_destroy(w->translated);
}

/* Worker `id` takes every jobs-th sequence. In a process of its own. */
static int work(struct worker *w, unsigned id)
{
    const struct options *o = w->options;
    int error = runners_create(w);

    if (error) {
        printf("diff_cpu: cannot set up a worker: %s\n", strerror(-error));
        return 1;
    }
    for (uint64_t i = id; i < o->sequences; i += o->jobs) {
        w->shared->running[id] = o->first + i;
        run_sequence(w, o->first + i);
        __atomic_fetch_add(&w->shared->done, 1, __ATOMIC_RELAXED);
        if (w->shared->failures >= FAILURES_MAX)
            break;
    }
    runners_destroy(w);
    return 0;
}

static int run_workers(struct worker *w)
{
    unsigned jobs = w->options->jobs;
    pid_t pid[64];
    int failed = 0;

    fflush(stdout);
    for (unsigned i = 0; i < jobs; i++) {
        pid[i] = fork();
        if (pid[i] == 0) {
            int status = work(w, i);
            fflush(stdout);
            _exit(status);
        }
    }
    for (unsigned i = 0; i < jobs; i++) {
        int status = 0;
        if (pid[i] < 0 || waitpid(pid[i], &status, 0) < 0 || status) {
            printf("FAIL worker %u ended with status %x in sequence %llu\n", i, status,
                   (unsigned long long)w->shared->running[i]);
            failed++;
        }
    }
    return failed;
}

/* --- coverage --- */

static unsigned write_coverage(const struct worker *w)
{
    FILE *f = w->options->coverage ? fopen(w->options->coverage, "w") : NULL;
    unsigned low = 0;

    for (unsigned i = 0; i < w->chosen_count; i++) {
        uint64_t cases = w->shared->cases[w->chosen[i]];
        low += cases < CASES_WANTED;
        if (f)
            fprintf(f, "%10llu  %s\n", (unsigned long long)cases, w->forms.form[w->chosen[i]].name);
        if (cases < CASES_WANTED && w->options->sequences >= 10000)
            printf("%llu cases only: %s\n", (unsigned long long)cases,
                   w->forms.form[w->chosen[i]].name);
    }
    if (f)
        fclose(f);
    return low;
}

static int summarise(const struct worker *w, int failed)
{
    const struct shared *s = w->shared;
    unsigned low = write_coverage(w);

    printf("diff_cpu: seed %llu: %llu sequences (%llu strayed, did not end or cannot be compared "
           "here, and were skipped), %llu "
           "instructions, "
           "%u forms, %u of them below %u cases, %llu differences\n",
           (unsigned long long)w->options->seed, (unsigned long long)s->done,
           (unsigned long long)s->skipped, (unsigned long long)s->instructions, w->chosen_count,
           low, CASES_WANTED, (unsigned long long)s->failures);
    printf("sequences by the exception that ended them:");
    for (unsigned i = 0; i < ARRAY_COUNT(s->ends); i++)
        if (s->ends[i])
            printf(" %u:%llu", i, (unsigned long long)s->ends[i]);
    printf("\n");
    if (failed || s->failures)
        return 1;
    /* A short run or a part of the forms is for a person; the table is for whole runs. */
    return low && w->options->sequences >= 10000 && !w->options->only && w->options->group < 0;
}

static uint64_t number(const char *text)
{
    char *end;
    uint64_t v = strtoull(text, &end, 0);
    if (*end || !*text) {
        fprintf(stderr, "diff_cpu: %s is not a number\n", text);
        exit(2);
    }
    return v;
}

static int group(const char *text)
{
    static const char *const names[] = {"integer", "vector", "x87"};

    for (unsigned i = 0; i < ARRAY_COUNT(names); i++)
        if (strcmp(text, names[i]) == 0)
            return (int)i;
    fprintf(stderr, "diff_cpu: --group %s: integer, vector or x87\n", text);
    exit(2);
}

static void parse(struct options *o, int argc, char **argv)
{
    static const struct option longs[] = {{"sequences", required_argument, NULL, 'n'},
                                          {"seed", required_argument, NULL, 's'},
                                          {"first", required_argument, NULL, 'f'},
                                          {"jobs", required_argument, NULL, 'j'},
                                          {"coverage", required_argument, NULL, 'c'},
                                          {"only", required_argument, NULL, 'o'},
                                          {"group", required_argument, NULL, 'g'},
                                          {"mode", required_argument, NULL, 'm'},
                                          {NULL, 0, NULL, 0}};
    int c;

    while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        switch (c) {
        case 'n':
            o->sequences = number(optarg);
            break;
        case 's':
            o->seed = number(optarg);
            break;
        case 'f':
            o->first = number(optarg);
            break;
        case 'j':
            o->jobs = (unsigned)MAX(1u, MIN(number(optarg), 64u));
            break;
        case 'c':
            o->coverage = optarg;
            break;
        case 'o':
            o->only = optarg;
            break;
        case 'm':
            o->code_size = number(optarg) == 32 ? 4 : 8;
            break;
        case 'g':
            o->group = group(optarg);
            break;
        default:
            fprintf(
                stderr,
                "usage: diff_cpu [--sequences N] [--seed S] [--first N] [--jobs N] "
                "[--coverage FILE] [--only TEXT] [--group integer|vector|x87] [--mode 32|64]\n");
            exit(2);
        }
    }
}

int main(int argc, char **argv)
{
    static struct options options = {
        .seed = 1, .sequences = 10000, .jobs = 1, .group = -1, .code_size = 8};
    static struct worker worker = {.options = &options};
    int error;

    parse(&options, argc, argv);
    error = worker_create(&worker);
    if (error) {
        fprintf(stderr, "diff_cpu: %s\n", strerror(-error));
        return 1;
    }
    worker.shared = mmap(NULL, sizeof *worker.shared + worker.forms.count * sizeof(uint64_t),
                         PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (worker.shared == MAP_FAILED)
        return 1;
    int failed = run_workers(&worker);
    return summarise(&worker, failed);
}
