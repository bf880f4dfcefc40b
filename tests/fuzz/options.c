/*
 * Fuzz target: the command line of parat run.
 *
 * The input is the arguments, each ended by a newline or a zero. What is refused is told with a
 * sentence; what is taken is within its bounds.
 */
#include "fuzz.h"

#include <ctype.h>

#include "cli/run_options.h"

#define ARGS_MAX 40

static void check_taken(const struct run_options *o)
{
    bool good = o->cpus >= 1 && o->cpus <= ENGINE_VCPUS_MAX && o->memory >= RUN_MEMORY_MIN &&
                o->disk_count <= RUN_DISKS_MAX && o->net_count <= RUN_NETS_MAX &&
                o->initrd_count <= RUN_INITRDS_MAX && o->kernel &&
                memchr(o->engine, 0, sizeof o->engine);

    for (unsigned i = 0; good && i < o->disk_count; i++)
        good = o->disks[i].path && *o->disks[i].path &&
               memchr(o->disks[i].serial, 0, sizeof o->disks[i].serial);
    for (unsigned i = 0; good && i < o->net_count; i++)
        good = o->nets[i].user.forward_count <= NET_USER_FORWARDS_MAX;
    if (!good)
        fuzz_fail("options were taken that are out of their bounds");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char text[2048], *args[ARGS_MAX + 1];
    unsigned count = 0;
    struct run_options options;
    struct err err = {{0}};
    bool help = false;

    size = MIN(size, sizeof text - 1);
    memcpy(text, data, size);
    text[size] = 0;
    for (char *at = text; at < text + size && count < ARGS_MAX; at += strlen(at) + 1) {
        at[strcspn(at, "\n")] = 0;
        args[count++] = at;
    }
    args[count] = NULL;
    if (run_options_parse(&options, args, &help, &err)) {
        if (!err.text[0])
            fuzz_fail("a refusal without a sentence");
    } else if (!help) {
        check_taken(&options);
    }
    run_options_free(&options);
    return 0;
}
