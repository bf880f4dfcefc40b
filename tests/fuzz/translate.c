/*
 * Fuzz target: random code pages for the translator, compared with the interpreter; then the host
 * code is read (verify.h).
 *
 * The input is what world.h says.
 */
#include "compare.h"
#include "verify.h"

#define CODE_MEMORY       (1u << 20)
#define CODE_MEMORY_SMALL (128u << 10)

struct input {
    struct world_header header;
    struct fuzz_input code;
};

static struct world reference, subject, subject_small;

/* The worlds live as long as the program, and lie where the leak detector does not look. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    world_create(&reference, ENGINE_CODE_INTERPRET, 0);
    world_create(&subject, ENGINE_CODE_TRANSLATE, CODE_MEMORY);
    world_create(&subject_small, ENGINE_CODE_TRANSLATE, CODE_MEMORY_SMALL);
    compare_init();
    return 0;
}

static void fill(struct world *w, const void *input)
{
    const struct input *in = input;
    world_reset(w, &in->header, &in->code);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {.code = {data, size}};

    world_read_header(&in.code, &in.header);
    bool small = in.header.flags & WORLD_SMALL;
    struct compare compare = {.reference = &reference,
                              .subject = small ? &subject_small : &subject,
                              .fill = fill,
                              .input = &in,
                              .stepwise = in.header.flags & WORLD_STEPWISE,
                              .translates = true};
    compare_run(&compare);
    verify_code(compare.subject->vcpu);
    return 0;
}
