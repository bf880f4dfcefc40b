/*
 * Fuzz target: kernels of all formats (bzImage, ELF with PVH, multiboot), initrd and command line.
 *
 * The input is a byte of choices, the lengths of initrd and command line, these two, and the
 * kernel. What is refused is told with a sentence; what is loaded leaves a state that a CPU can be
 * in.
 */
#include "fuzz.h"

#include <sys/mman.h>
#include <unistd.h>

#include "boot/boot.h"
#include "engine/fake/fake.h"
#include "vm/machine.h"
#include "x86/state.h"

#define RAM (48ull << 20)

struct file {
    int fd;
    char path[32];
};

static struct file kernel, initrd;
static struct machine *machine;

static void make_file(struct file *file, const char *name)
{
    file->fd = memfd_create(name, 0);
    fuzz_must(file->fd >= 0);
    snprintf(file->path, sizeof file->path, "/proc/self/fd/%d", file->fd);
}

static void fill_file(const struct file *file, const uint8_t *data, size_t size)
{
    fuzz_must(ftruncate(file->fd, 0) == 0);
    fuzz_must(pwrite(file->fd, data, size, 0) == (ssize_t)size);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    struct loop *loop;
    struct err err = {{0}};

    (void)argc, (void)argv;
    make_file(&kernel, "kernel");
    make_file(&initrd, "initrd");
    fuzz_must(loop_create(&loop) == 0);
    struct machine_config config = {
        .name = "fuzz", .vcpu_count = 2, .ram_size = RAM, .engine = &engine_fake, .loop = loop};
    fuzz_must(machine_create(&machine, &config, &err) == 0);
    return 0;
}

static void check_refusal(const struct err *err)
{
    if (!strstr(err->text, "--kernel") && !strstr(err->text, "--initrd") &&
        !strstr(err->text, "--append") && !strstr(err->text, "--memory"))
        fuzz_fail("a refusal that names no option: '%s'", err->text);
}

static void boot(const struct boot_config *config)
{
    struct boot_image *image;
    struct err err = {{0}};
    struct x86_state cpu;

    if (boot_open(&image, config, &err)) {
        check_refusal(&err);
        return;
    }
    x86_state_reset(&cpu, 0, true);
    if (boot_load(machine, image, &cpu, &err)) {
        check_refusal(&err);
    } else {
        const char *wrong = x86_state_validate(&cpu);
        if (wrong)
            fuzz_fail("the CPU's first state is none: %s", wrong);
    }
    boot_close(image);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};
    uint8_t choice = fuzz_u8(&in), append_length = fuzz_u8(&in), initrd_length = fuzz_u8(&in);
    const char *paths[2] = {initrd.path, initrd.path};
    char append[5000];
    uint8_t disk[256];

    memset(append, 'a', sizeof append);
    fuzz_take(&in, append, append_length);
    /* Also longer than a protocol allows. */
    append[choice & 0x80 ? sizeof append - 1 : append_length] = 0;
    fuzz_take(&in, disk, initrd_length);
    fill_file(&initrd, disk, initrd_length);
    fill_file(&kernel, in.data, in.left);
    struct boot_config config = {.kernel = kernel.path,
                                 .initrds = paths,
                                 .initrd_count = (choice & 3) % 3,
                                 .append = choice & 4 ? append : NULL};
    boot(&config);
    return 0;
}
