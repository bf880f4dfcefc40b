/*
 * backend/disk against qemu-img: images that it made are read, written and stay sound in its eyes;
 * images that we made are, too. Skipped where there is no qemu-img.
 */
#include "image_rig.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define DISK_SIZE (8u << 20)

struct fixture {
    char folder[64];
    uint8_t *model, *buffer;
};

/* Runs a command line in the fixture's folder; its exit status. */
static int run(const struct fixture *f, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static int run(const struct fixture *f, const char *format, ...)
{
    char command[1024];
    int used = snprintf(command, sizeof command, "cd %s && exec 3>&2 >>log 2>&1; ", f->folder);
    va_list args;
    va_start(args, format);
    vsnprintf(command + used, sizeof command - (size_t)used, format, args);
    va_end(args);
    int status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

#define RUN(f, ...)                                                                                \
    do {                                                                                           \
        if (run(f, __VA_ARGS__)) {                                                                 \
            run(f, "cat log >&3");                                                                 \
            fail_msg("failed: " __VA_ARGS__);                                                      \
        }                                                                                          \
    } while (0)

static const char *path_of(const struct fixture *f, const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", f->folder, name);
    return path;
}

/* A disk with data, zeroes and what compresses well. */
static void fill_model(struct fixture *f)
{
    uint64_t seed = 88172645463325252ull;
    memset(f->model, 0, DISK_SIZE);
    for (uint64_t at = 0; at < DISK_SIZE; at += 16384) {
        uint64_t kind = next_random(&seed) % 4;
        for (uint64_t i = 0; kind > 1 && i < 16384; i += 8)
            store_le64(f->model + at + i, kind == 2 ? at : next_random(&seed));
    }
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    /* In memory where that is possible: qemu-img flushes much. */
    snprintf(f->folder, sizeof f->folder, "%s/parat-test-qemu-XXXXXX",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    assert_non_null(mkdtemp(f->folder));
    f->model = malloc(DISK_SIZE);
    f->buffer = malloc(DISK_SIZE);
    fill_model(f);
    int fd = open(path_of(f, "model.raw"), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_int_equal(write(fd, f->model, DISK_SIZE), DISK_SIZE);
    close(fd);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", f->folder);
    assert_int_equal(system(command), 0);
    free(f->model);
    free(f->buffer);
    free(f);
    return 0;
}

static struct fixture *fixture_of(void **state)
{
    struct fixture *f = *state;
    if (run(f, "qemu-img --version"))
        skip();
    return f;
}

static struct image *open_image(const struct fixture *f, const char *name, bool read_only)
{
    struct image *image = NULL;
    struct err err = {{0}};
    struct image_config config = {.label = "", .path = path_of(f, name), .read_only = read_only};
    if (image_open(&image, &config, &err))
        fail_msg("%s", err.text);
    return image;
}

static void assert_reads_as_model(struct fixture *f, struct image *image)
{
    assert_int_equal(image->size, DISK_SIZE);
    assert_int_equal(image_read(image, f->buffer, DISK_SIZE, 0), 0);
    for (uint64_t at = 0; at < DISK_SIZE; at += 512)
        if (memcmp(f->buffer + at, f->model + at, 512) != 0)
            fail_msg("sector %llu differs", (unsigned long long)at / 512);
}

static void change(struct fixture *f, struct image *image, uint64_t seed)
{
    for (unsigned i = 0; i < 150; i++) {
        uint64_t at = next_random(&seed) % (DISK_SIZE / 512);
        uint64_t count = 1 + next_random(&seed) % MIN(DISK_SIZE / 512 - at, 300u);
        uint64_t offset = at * 512, length = count * 512, dice = next_random(&seed) % 8;
        if (dice < 5) {
            for (uint64_t k = 0; k < length; k += 8)
                store_le64(f->model + offset + k, next_random(&seed));
            assert_int_equal(image_write(image, f->model + offset, length, offset), 0);
        } else if (dice < 7) {
            enum image_clear how = dice == 5 ? IMAGE_ZERO : IMAGE_ZERO_UNMAP;
            memset(f->model + offset, 0, length);
            assert_int_equal(image->ops->clear(image, offset, length, how), 0);
        } else {
            assert_int_equal(image->ops->flush(image), 0);
        }
    }
}

/* qemu-img finds nothing wrong, not even a leak, and reads the same. */
static void assert_good_for_qemu(struct fixture *f, const char *name)
{
    RUN(f, "qemu-img check -q -f qcow2 %s", name);
    RUN(f, "rm -f out.raw && qemu-img convert -f qcow2 -O raw %s out.raw", name);
    int fd = open(path_of(f, "out.raw"), O_RDONLY);
    assert_int_equal(read(fd, f->buffer, DISK_SIZE), DISK_SIZE);
    close(fd);
    assert_memory_equal(f->buffer, f->model, DISK_SIZE);
}

static void use_image(struct fixture *f, const char *name)
{
    struct image *image = open_image(f, name, true);
    assert_reads_as_model(f, image);
    assert_int_equal(image_close(image), 0);
    for (uint64_t pass = 1; pass < 3; pass++) {
        image = open_image(f, name, false);
        change(f, image, pass);
        assert_reads_as_model(f, image);
        assert_int_equal(image_close(image), 0);
        assert_good_for_qemu(f, name);
    }
}

static void test_images_of_qemu_img_are_used(void **state)
{
    static const char *const options[] = {
        "-o compat=0.10",
        "-o compat=1.1",
        "-o cluster_size=512",
        "-o cluster_size=2M",
        "-o lazy_refcounts=on,cluster_size=4K",
        "-o refcount_bits=1",
        "-o refcount_bits=64,cluster_size=512",
        "-o preallocation=metadata",
        "-c -o compat=0.10",
        "-c -o compression_type=zlib",
        "-c -o compression_type=zstd",
        "-c -o compression_type=zlib,cluster_size=4K",
    };
    struct fixture *f = fixture_of(state);
    for (size_t i = 0; i < ARRAY_COUNT(options); i++) {
        fill_model(f);
        RUN(f, "rm -f a.qcow2 && qemu-img convert -f raw -O qcow2 %s model.raw a.qcow2",
            options[i]);
        use_image(f, "a.qcow2");
    }
}

static void test_snapshots_of_qemu_img_stay(void **state)
{
    struct fixture *f = fixture_of(state);
    RUN(f, "qemu-img convert -f raw -O qcow2 -o cluster_size=4K model.raw a.qcow2");
    RUN(f, "qemu-img snapshot -c first a.qcow2");
    use_image(f, "a.qcow2");
    RUN(f, "qemu-img snapshot -c second a.qcow2");
    use_image(f, "a.qcow2");
    RUN(f, "qemu-img snapshot -a first a.qcow2");
    fill_model(f);
    assert_good_for_qemu(f, "a.qcow2");
    RUN(f, "qemu-img snapshot -d second a.qcow2 && qemu-img snapshot -d first a.qcow2");
    use_image(f, "a.qcow2");
}

static void test_backing_files_of_qemu_img_are_followed(void **state)
{
    struct fixture *f = fixture_of(state);
    RUN(f, "mkdir sub && qemu-img convert -f raw -O qcow2 -c model.raw sub/base.qcow2");
    RUN(f, "cd sub && qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 middle.qcow2");
    RUN(f, "qemu-img create -q -f qcow2 -b sub/middle.qcow2 -F qcow2 top.qcow2");
    RUN(f, "cp model.raw base.raw && qemu-img create -q -f qcow2 -b base.raw -F raw other.qcow2");
    use_image(f, "top.qcow2");
    fill_model(f);
    use_image(f, "other.qcow2");
}

/* Bitmaps that no longer tell the truth are marked so, and cost no more than leaks. */
static void test_bitmaps_are_marked_out_of_date(void **state)
{
    struct fixture *f = fixture_of(state);
    RUN(f, "qemu-img convert -f raw -O qcow2 model.raw a.qcow2");
    RUN(f, "qemu-img bitmap --add a.qcow2 changes");
    assert_int_equal(run(f, "qemu-img check -q a.qcow2"), 0);
    struct image *image = open_image(f, "a.qcow2", false);
    change(f, image, 3);
    assert_int_equal(image_close(image), 0);
    int status = run(f, "qemu-img check -q a.qcow2");
    assert_true(status == 0 || status == 3);
    RUN(f, "qemu-img check -q -r leaks a.qcow2");
    assert_good_for_qemu(f, "a.qcow2");
}

static void make(const struct fixture *f, const struct qcow2_create *create)
{
    unlink(path_of(f, "a.qcow2"));
    struct disk_file_config config = {.label = "", .path = path_of(f, "a.qcow2")};
    struct disk_file file;
    assert_int_equal(disk_file_create(&file, &config, NULL), 0);
    struct image_file *on = image_file_on_disk(&file);
    assert_int_equal(qcow2_create(on, "a", create, NULL), 0);
    on->ops->close(on);
}

static void test_our_images_are_good_for_qemu_img(void **state)
{
    static const struct qcow2_create creates[] = {
        {DISK_SIZE, 3, 65536, 16, false, NULL, NULL},
        {DISK_SIZE, 2, 65536, 16, false, NULL, NULL},
        {DISK_SIZE, 3, 512, 16, false, NULL, NULL},
        {DISK_SIZE, 3, 2u << 20, 1, false, NULL, NULL},
        {DISK_SIZE, 3, 4096, 64, true, NULL, NULL},
        {DISK_SIZE, 3, 65536, 16, false, "model.raw", "raw"},
    };
    struct fixture *f = fixture_of(state);
    for (size_t i = 0; i < ARRAY_COUNT(creates); i++) {
        fill_model(f);
        if (!creates[i].backing_name)
            memset(f->model, 0, DISK_SIZE);
        make(f, &creates[i]);
        assert_good_for_qemu(f, "a.qcow2");
        use_image(f, "a.qcow2");
    }
}

/* qemu-img agrees on what is wrong, and that it was mended. */
static void test_checks_agree(void **state)
{
    struct fixture *f = fixture_of(state);
    RUN(f, "qemu-img convert -f raw -O qcow2 -o cluster_size=4K model.raw a.qcow2");
    int fd = open(path_of(f, "a.qcow2"), O_RDWR);
    uint8_t word[8], zero[2] = {0}, seven[2] = {0, 7};
    assert_int_equal(pread(fd, word, 8, QCOW2_AT_REFCOUNT_OFFSET), 8);
    assert_int_equal(pread(fd, word, 8, (off_t)load_be64(word)), 8);
    off_t block = (off_t)load_be64(word);
    assert_int_equal(pwrite(fd, seven, 2, block + 100), 2);
    assert_int_not_equal(run(f, "qemu-img check -q a.qcow2"), 0);
    assert_int_equal(pwrite(fd, zero, 2, block + 200), 2);
    assert_int_equal(run(f, "qemu-img check -q a.qcow2"), 2);
    struct disk_file_config config = {.label = "", .path = path_of(f, "a.qcow2")};
    struct disk_file file;
    close(fd);
    assert_int_equal(disk_file_open(&file, &config, NULL), 0);
    struct image_file *on = image_file_on_disk(&file);
    struct qcow2_report report;
    struct qcow2_check check = {.name = "a", .repair = true};
    assert_int_equal(qcow2_check(on, &check, &report, NULL), 0);
    on->ops->close(on);
    assert_int_equal(report.leaks, 1);
    assert_int_equal(report.bad_refcounts, 1);
    assert_true(report.mended);
    assert_good_for_qemu(f, "a.qcow2");
    use_image(f, "a.qcow2");
}

/* 64 TiB with something in the first, middle and last cluster. */
static void test_large_disks_work(void **state)
{
    struct fixture *f = fixture_of(state);
    uint64_t size = 64ull << 40, places[] = {0, size / 2 + 512, size - 512};
    struct qcow2_create create = {size, 3, 65536, 16, false, NULL, NULL};
    make(f, &create);
    struct image *image = open_image(f, "a.qcow2", false);
    assert_int_equal(image->size, size);
    for (size_t i = 0; i < ARRAY_COUNT(places); i++)
        assert_int_equal(image_write(image, f->model + 32768, 512, places[i]), 0);
    assert_int_equal(image_close(image), 0);
    RUN(f, "qemu-img check -q a.qcow2");
    image = open_image(f, "a.qcow2", true);
    for (size_t i = 0; i < ARRAY_COUNT(places); i++) {
        assert_int_equal(image_read(image, f->buffer, 512, places[i]), 0);
        assert_memory_equal(f->buffer, f->model + 32768, 512);
    }
    assert_int_equal(image_close(image), 0);
    struct stat st;
    assert_int_equal(stat(path_of(f, "a.qcow2"), &st), 0);
    assert_true(st.st_blocks * 512ll < 4 << 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_images_of_qemu_img_are_used, setup, teardown),
        cmocka_unit_test_setup_teardown(test_snapshots_of_qemu_img_stay, setup, teardown),
        cmocka_unit_test_setup_teardown(test_backing_files_of_qemu_img_are_followed, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_bitmaps_are_marked_out_of_date, setup, teardown),
        cmocka_unit_test_setup_teardown(test_our_images_are_good_for_qemu_img, setup, teardown),
        cmocka_unit_test_setup_teardown(test_large_disks_work, setup, teardown),
        cmocka_unit_test_setup_teardown(test_checks_agree, setup, teardown),
    };
    return cmocka_run_group_tests_name("qcow2_qemu", tests, NULL, NULL);
}
