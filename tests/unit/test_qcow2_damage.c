/*
 * backend/disk with images that are wrong: each is refused with one sentence that names the file
 * and what is wrong, nothing outside the image's own clusters is written, and mending mends.
 * Formats are never guessed from what a guest can write.
 */
#include "image_rig.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define CLUSTER   4096u
#define DISK_SIZE (4u << 20)

/* An image whose first 256 KiB hold data. */
static struct mem_file *good_image(void)
{
    struct qcow2_create create = {DISK_SIZE, 3, CLUSTER, 16, false, NULL, NULL};
    struct mem_file *mem = make_qcow2(&create);
    struct image *image = open_qcow2(mem, false);
    uint8_t *data = malloc(256u << 10);
    memset(data, 0xa5, 256u << 10);
    assert_int_equal(image_write(image, data, 256u << 10, 0), 0);
    free(data);
    assert_int_equal(image_close(image), 0);
    return mem;
}

static uint64_t pointer_at(const struct mem_file *mem, uint64_t offset)
{
    return load_be64(mem->data + offset) & QCOW2_OFFSET_MASK;
}

static uint64_t l1_of(const struct mem_file *mem)
{
    return pointer_at(mem, QCOW2_AT_L1_OFFSET);
}

static uint64_t l2_of(const struct mem_file *mem)
{
    return pointer_at(mem, l1_of(mem));
}

static uint64_t table_of(const struct mem_file *mem)
{
    return pointer_at(mem, QCOW2_AT_REFCOUNT_OFFSET);
}

/* The sentence with which a memory file is refused. */
static void assert_refused(struct mem_file *mem, bool read_only, const char *words)
{
    struct image *image = NULL;
    struct err err = {{0}};
    int error = qcow2_open(&image, &mem->base, "--disk bad.qcow2", read_only, &err);
    if (!error)
        fail_msg("was opened, not refused with: %s", words);
    assert_null(image);
    if (strncmp(err.text, "--disk bad.qcow2: ", 18) != 0 || !strstr(err.text, words) ||
        strchr(err.text, '\n'))
        fail_msg("not '%s' but: %s", words, err.text);
}

/* Header fields */

struct patch {
    uint64_t offset;
    unsigned width; /* bytes */
    uint64_t value;
    const char *words;
};

static void apply(struct mem_file *mem, uint64_t offset, unsigned width, uint64_t value)
{
    if (width == 1)
        mem->data[offset] = (uint8_t)value;
    else if (width == 4)
        store_be32(mem->data + offset, (uint32_t)value);
    else
        store_be64(mem->data + offset, value);
}

static void test_bad_headers_are_refused(void **state)
{
    static const struct patch patches[] = {
        {0, 1, 'X', "is no qcow2 image"},
        {QCOW2_AT_VERSION, 4, 1, "version 1"},
        {QCOW2_AT_VERSION, 4, 4, "version 4"},
        {QCOW2_AT_CLUSTER_BITS, 4, 8, "cluster size is 2^8"},
        {QCOW2_AT_CLUSTER_BITS, 4, 22, "cluster size is 2^22"},
        {QCOW2_AT_CLUSTER_BITS, 4, UINT32_MAX, "cluster size is 2^4294967295"},
        {QCOW2_AT_CRYPT_METHOD, 4, 1, "is encrypted (AES)"},
        {QCOW2_AT_CRYPT_METHOD, 4, 2, "is encrypted (LUKS)"},
        {QCOW2_AT_SIZE, 8, 1ull << 40, "L1 table of 2 entries is too small"},
        {QCOW2_AT_SIZE, 8, UINT64_MAX, "size is no size"},
        {QCOW2_AT_L1_SIZE, 4, 0, "L1 table of 0 entries is too small"},
        {QCOW2_AT_L1_SIZE, 4, UINT32_MAX, "L1 table is too large"},
        {QCOW2_AT_L1_OFFSET, 8, 4100, "L1 table does not begin with a cluster"},
        {QCOW2_AT_L1_OFFSET, 8, 0, "the L1 table points to a cluster that holds another table"},
        {QCOW2_AT_L1_OFFSET, 8, 1ull << 50, "the L1 table lies outside the file"},
        {QCOW2_AT_REFCOUNT_OFFSET, 8, 4100, "refcount table does not begin with a cluster"},
        {QCOW2_AT_REFCOUNT_OFFSET, 8, 0, "the refcount table points to a cluster that holds"},
        {QCOW2_AT_REFCOUNT_OFFSET, 8, 1ull << 62, "the refcount table lies outside the file"},
        {QCOW2_AT_REFCOUNT_CLUSTERS, 4, 0, "the refcount table is missing"},
        {QCOW2_AT_REFCOUNT_CLUSTERS, 4, UINT32_MAX, "refcount table is too large"},
        {QCOW2_AT_SNAPSHOT_COUNT, 4, UINT32_MAX, "snapshots is damaged"},
        {QCOW2_AT_SNAPSHOT_COUNT, 4, 3, "the table of snapshots"},
        {QCOW2_AT_REFCOUNT_ORDER, 4, 7, "refcounts are 2^7 bits"},
        {QCOW2_AT_HEADER_LENGTH, 4, 72, "its length is given as 72"},
        {QCOW2_AT_HEADER_LENGTH, 4, 1u << 30, "its length is given as"},
        {QCOW2_AT_INCOMPATIBLE, 8, BIT(1), "is marked as damaged"},
        {QCOW2_AT_INCOMPATIBLE, 8, BIT(2), "needs the feature 'external data file'"},
        {QCOW2_AT_INCOMPATIBLE, 8, BIT(3), "needs the compression type 0"},
        {QCOW2_AT_INCOMPATIBLE, 8, BIT(4), "needs the feature 'extended L2 entries'"},
        {QCOW2_AT_INCOMPATIBLE, 8, BIT(41), "needs an unknown incompatible feature (bit 41)"},
        {QCOW2_V3_LENGTH + 4, 4, UINT32_MAX, "its extensions are damaged"},
        {QCOW2_AT_BACKING_OFFSET, 8, 1u << 20, "the name of its backing file is damaged"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(patches); i++) {
        struct mem_file *mem = good_image();
        store_be32(mem->data + QCOW2_V3_LENGTH, 0x12345678); /* an extension nobody knows */
        store_be32(mem->data + QCOW2_AT_BACKING_SIZE, 10);
        apply(mem, patches[i].offset, patches[i].width, patches[i].value);
        assert_refused(mem, false, patches[i].words);
        mem_free(mem);
    }
}

static void test_unknown_feature_is_told_by_its_name(void **state)
{
    struct mem_file *mem = good_image();
    uint8_t *extension = mem->data + QCOW2_V3_LENGTH;
    store_be64(mem->data + QCOW2_AT_INCOMPATIBLE, BIT(17));
    store_be32(extension, QCOW2_EXTENSION_FEATURE_NAMES);
    store_be32(extension + 4, 48);
    extension[9] = 17;
    memcpy(extension + 10, "time travel", 11);
    assert_refused(mem, true, "needs the unknown incompatible feature 'time travel' (bit 17)");
    mem_free(mem);
}

static void test_short_files_are_refused(void **state)
{
    struct mem_file *mem = good_image();
    mem->size = 3;
    assert_refused(mem, true, "is no qcow2 image");
    mem->size = CLUSTER;
    assert_refused(mem, true, "lies outside the file");
    mem_free(mem);
}

/* Tables */

static void test_bad_l1_and_refcount_tables_are_refused(void **state)
{
    struct {
        bool refcounts;
        uint64_t value;
        const char *words;
    } cases[] = {
        {false, 0x12200, "an L1 entry points into the middle of a cluster"},
        {false, 1ull << 50, "an L1 entry points outside the file"},
        {false, CLUSTER, "an L1 entry points to a cluster that holds another table"},
        {false, BIT(60) | 0x10000, "an L1 entry has reserved bits"},
        {true, 0x12200, "a refcount table entry points into the middle"},
        {true, 1ull << 50, "a refcount table entry points outside the file"},
        {true, CLUSTER, "a refcount table entry points to a cluster that holds another table"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct mem_file *mem = good_image();
        uint64_t table = cases[i].refcounts ? table_of(mem) : l1_of(mem);
        store_be64(mem->data + table + 8, cases[i].value);
        assert_refused(mem, false, cases[i].words);
        mem_free(mem);
    }
}

static void test_refcount_loop_is_refused_and_mended(void **state)
{
    struct mem_file *mem = good_image();
    uint64_t table = table_of(mem);
    store_be64(mem->data + table, table); /* the block is the table itself */
    assert_refused(mem, false, "a refcount table entry points to a cluster that holds another");
    image_close(open_qcow2(mem, true)); /* to read it no refcounts are needed */
    assert_true(check_qcow2(mem, false, false).bad_refcounts > 0);
    assert_true(check_qcow2(mem, true, false).mended);
    assert_sound(mem, false);
    image_close(open_qcow2(mem, false));
    mem_free(mem);
}

static void test_two_l1_entries_with_one_table_are_refused(void **state)
{
    struct mem_file *mem = good_image();
    uint64_t l1 = l1_of(mem);
    memcpy(mem->data + l1 + 8, mem->data + l1, 8);
    assert_refused(mem, false, "an L1 entry points to a cluster that holds another table");
    assert_true(check_qcow2(mem, false, false).errors > 0);
    mem_free(mem);
}

/* An L2 entry is looked at when it is used: the request fails, and nothing is written. */
static void test_bad_l2_entries_fail_and_spare_the_tables(void **state)
{
    struct mem_file *good = good_image();
    const uint64_t values[] = {
        0 | QCOW2_COPIED | 0x12200,    /* the middle of a cluster */
        QCOW2_COPIED | 1ull << 50,     /* outside the file */
        QCOW2_COPIED | l1_of(good),    /* each table */
        QCOW2_COPIED | l2_of(good),    //
        QCOW2_COPIED | table_of(good), //
        QCOW2_COPIED | pointer_at(good, table_of(good)),
        QCOW2_COMPRESSED | 1ull << 49,    /* compressed, outside the file */
        QCOW2_COPIED | BIT(57) | 0x10000, /* reserved */
    };
    log_set_level(LOG_ERROR - 1); /* each of them is told */
    for (size_t i = 0; i < ARRAY_COUNT(values); i++) {
        struct mem_file *mem = mem_create(good->data, good->size);
        store_be64(mem->data + l2_of(mem), values[i]);
        struct mem_file *before = mem_create(mem->data, mem->size);
        struct image *image = open_qcow2(mem, false);
        uint8_t data[2 * CLUSTER] = {1};
        assert_int_equal(image_read(image, data, CLUSTER, 0), -EIO);
        assert_int_equal(image_write(image, data, CLUSTER, 0), -EIO);
        assert_int_equal(image_write(image, data, 512, 0), -EIO);
        assert_int_equal(image->ops->clear(image, 0, CLUSTER, IMAGE_ZERO), -EIO);
        assert_int_equal(image_read(image, data, CLUSTER, CLUSTER), 0); /* the next one is good */
        assert_int_equal(data[0], 0xa5);
        assert_int_equal(image_close(image), 0);
        assert_int_equal(mem->size, before->size);
        assert_memory_equal(mem->data, before->data, mem->size);
        struct qcow2_report report = check_qcow2(mem, true, false);
        assert_true(report.errors > 0);
        bool moved = i == 4 || i == 5; /* mending made new refcount tables elsewhere */
        assert_int_equal(check_qcow2(mem, false, false).errors > 0, !moved);
        mem_free(before);
        mem_free(mem);
    }
    mem_free(good);
}

static void test_broken_compressed_cluster_is_an_error(void **state)
{
    struct mem_file *mem = good_image();
    uint64_t data = pointer_at(mem, l2_of(mem));
    store_be64(mem->data + l2_of(mem), QCOW2_COMPRESSED | data);
    struct image *image = open_qcow2(mem, true);
    uint8_t sector[512];
    assert_int_equal(image_read(image, sector, 512, 0), -EIO);
    image_close(image);
    mem_free(mem);
}

/* A table that is counted as free must not become a data cluster. */
static void test_free_table_is_not_given_away(void **state)
{
    struct mem_file *mem = good_image();
    uint64_t block = pointer_at(mem, table_of(mem));
    memset(mem->data + block, 0, CLUSTER);
    struct mem_file *before = mem_create(mem->data, mem->size);
    struct image *image = open_qcow2(mem, false);
    uint8_t data[512] = {1};
    assert_int_equal(image_write(image, data, 512, 1u << 20), -EIO);
    image_close(image);
    assert_memory_equal(mem->data, before->data, before->size);
    assert_true(check_qcow2(mem, true, false).mended);
    assert_sound(mem, false);
    mem_free(before);
    mem_free(mem);
}

/* Checking and mending */

static void test_check_finds_and_mends(void **state)
{
    struct mem_file *mem = good_image();
    uint64_t block = pointer_at(mem, table_of(mem)), l2 = l2_of(mem);
    store_be16(mem->data + block + 2 * 9, 4);    /* a leak */
    store_be16(mem->data + block + 2 * 1500, 1); /* one of a cluster that is not there */
    store_be16(mem->data + block + 2 * 12, 0);   /* a cluster that would be given away */
    store_be64(mem->data + l2 + 8 * 3, load_be64(mem->data + l2 + 8 * 3) & ~QCOW2_COPIED);
    struct qcow2_report report = check_qcow2(mem, false, false);
    assert_int_equal(report.leaks, 2);
    assert_int_equal(report.bad_refcounts, 1);
    assert_int_equal(report.bad_flags, 1);
    assert_int_equal(report.errors, 0);
    assert_false(report.mended);
    assert_true(check_qcow2(mem, true, false).mended);
    assert_sound(mem, false);
    mem_free(mem);
}

/* New refcount tables must not make a pointer behind the file's end look good. */
static void test_pointers_behind_the_end_stay_errors(void **state)
{
    struct mem_file *mem = good_image();
    uint64_t block = pointer_at(mem, table_of(mem));
    store_be16(mem->data + block + 2 * 1500, 1);
    store_be64(mem->data + l2_of(mem) + 8, align_up(mem->size, CLUSTER) | QCOW2_COPIED);
    struct mem_file *before = mem_create(mem->data, mem->size);
    struct qcow2_report report = check_qcow2(mem, true, false);
    assert_false(report.mended);
    assert_true(report.errors > 0 && report.leaks > 0);
    assert_int_equal(mem->size, before->size);
    assert_memory_equal(mem->data, before->data, mem->size);
    mem_free(before);
    mem_free(mem);
}

/* What a bad table pointed to looks unused; mending must not give it away. */
static void test_bad_tables_keep_what_they_pointed_to(void **state)
{
    static const struct patch patches[] = {
        {QCOW2_AT_L1_OFFSET, 8, 1ull << 40, NULL},
        {QCOW2_AT_L1_OFFSET, 8, 0, NULL},
        {QCOW2_AT_SNAPSHOTS_OFFSET, 8, 1ull << 40, NULL},
        {CLUSTER, 8, 1ull << 40, NULL}, /* the L1 entry */
        {CLUSTER, 8, 0x1200, NULL},
    };
    for (size_t i = 0; i < ARRAY_COUNT(patches); i++) {
        struct mem_file *mem = good_image();
        assert_int_equal(l1_of(mem), CLUSTER);
        add_snapshot(mem);
        apply(mem, patches[i].offset, patches[i].width, patches[i].value);
        struct mem_file *before = mem_create(mem->data, mem->size);
        struct qcow2_report report = check_qcow2(mem, true, false);
        assert_false(report.mended);
        assert_true(report.errors > 0 && report.leaks > 0);
        assert_int_equal(mem->size, before->size);
        assert_memory_equal(mem->data, before->data, mem->size);
        mem_free(before);
        mem_free(mem);
    }
}

/* Two parts of the disk in one cluster: both keep it until they are written. */
static void test_shared_cluster_is_parted(void **state)
{
    struct mem_file *mem = good_image();
    uint64_t l2 = l2_of(mem);
    memcpy(mem->data + l2 + 8, mem->data + l2, 8);
    struct qcow2_report report = check_qcow2(mem, true, false);
    assert_true(report.bad_refcounts > 0 && report.mended);
    assert_sound(mem, false);
    struct image *image = open_qcow2(mem, false);
    uint8_t data[512] = {0x17};
    assert_int_equal(image_write(image, data, 512, 0), 0);
    assert_int_equal(image_read(image, data, 512, CLUSTER), 0);
    assert_int_equal(data[0], 0xa5);
    assert_int_equal(image_close(image), 0);
    report = check_qcow2(mem, true, false); /* the other one may be written in place again */
    assert_int_equal(report.bad_flags, 1);
    assert_int_equal(report.leaks + report.bad_refcounts + report.errors, 0);
    assert_sound(mem, false);
    mem_free(mem);
}

static void test_corrupt_mark_goes_when_all_is_mended(void **state)
{
    struct mem_file *mem = good_image();
    store_be64(mem->data + QCOW2_AT_INCOMPATIBLE, QCOW2_INCOMPATIBLE_CORRUPT);
    assert_refused(mem, false, "'parat disk check --repair' may mend it");
    assert_true(check_qcow2(mem, true, false).mended);
    image_close(open_qcow2(mem, false));
    mem_free(mem);
}

/* Random damage: whatever happens, it ends, and what a check calls sound works. */
static void test_random_damage_ends(void **state)
{
    log_set_level(LOG_ERROR - 1);
    struct mem_file *good = good_image();
    add_snapshot(good);
    uint64_t seed = 77;
    unsigned opened = 0, refused = 0;
    for (unsigned round = 0; round < 1500; round++) {
        struct mem_file *mem = mem_create(good->data, good->size);
        for (uint64_t i = next_random(&seed) % 4; i < 4; i++) {
            uint64_t tables[] = {0,
                                 l1_of(good),
                                 l2_of(good),
                                 table_of(good),
                                 pointer_at(good, table_of(good)),
                                 pointer_at(good, QCOW2_AT_SNAPSHOTS_OFFSET)};
            uint64_t at = tables[next_random(&seed) % ARRAY_COUNT(tables)];
            at += next_random(&seed) % (next_random(&seed) % 2 ? 128 : 1024);
            mem->data[at] = (uint8_t)next_random(&seed);
        }
        struct image *image = NULL;
        if (qcow2_open(&image, &mem->base, "bad", false, NULL) == 0) {
            uint8_t data[3 * CLUSTER] = {0};
            opened++;
            for (unsigned i = 0; i < 40; i++) {
                uint64_t at = next_random(&seed) % ((image->size - sizeof data) / 512 + 1) * 512;
                if (i % 2)
                    (void)!image_read(image, data, sizeof data, at);
                else
                    (void)!image_write(image, data, sizeof data, at);
            }
            image_close(image);
        } else {
            refused++;
        }
        struct qcow2_report report;
        struct qcow2_check check = {.name = "bad", .repair = true};
        if (qcow2_check(&mem->base, &check, &report, NULL) == 0 && report.errors == 0)
            assert_sound(mem, false);
        mem_free(mem);
    }
    assert_true(opened > 300 && refused > 300);
    mem_free(good);
}

/* Chains of files */

struct folder {
    char path[64];
};

static int setup(void **state)
{
    struct folder *f = calloc(1, sizeof *f);
    strcpy(f->path, "/tmp/parat-test-chain-XXXXXX");
    assert_non_null(mkdtemp(f->path));
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct folder *f = *state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", f->path);
    assert_int_equal(system(command), 0);
    free(f);
    return 0;
}

static void write_file(const struct folder *f, const char *name, const void *data, size_t size)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", f->path, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_int_equal(write(fd, data, size), size);
    close(fd);
}

static void write_qcow2(const struct folder *f, const char *name, const char *backing,
                        const char *format)
{
    struct qcow2_create create = {1u << 20, 3, 4096, 16, false, backing, format};
    struct mem_file *mem = make_qcow2(&create);
    write_file(f, name, mem->data, mem->size);
    mem_free(mem);
}

static int try_open(const struct folder *f, const char *name, enum disk_format format,
                    struct err *err)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", f->path, name);
    struct image_config config = {.label = "--disk ", .path = path, .format = format};
    struct image *image;
    int error = image_open(&image, &config, err);
    if (!error)
        image_close(image);
    return error;
}

static void assert_chain_refused(const struct folder *f, const char *name, const char *file,
                                 const char *words)
{
    struct err err = {{0}};
    assert_true(try_open(f, name, DISK_FORMAT_AUTO, &err) < 0);
    if (!strstr(err.text, file) || !strstr(err.text, words) || strncmp(err.text, "--disk ", 7) != 0)
        fail_msg("bad sentence: %s", err.text);
}

static void test_bad_chains_are_refused_by_name(void **state)
{
    struct folder *f = *state;
    uint8_t raw[4096] = {1};
    write_file(f, "base.raw", raw, sizeof raw);
    write_qcow2(f, "missing.qcow2", "nosuch.raw", "raw");
    assert_chain_refused(f, "missing.qcow2", "nosuch.raw", "there is no such file");
    write_qcow2(f, "other.qcow2", "base.raw", "vmdk");
    assert_chain_refused(f, "other.qcow2", "base.raw", "format 'vmdk', which is not supported");
    write_qcow2(f, "net.qcow2", "nbd://host/x", "raw");
    assert_chain_refused(f, "net.qcow2", "nbd://host/x", "not on this host");
    write_qcow2(f, "json.qcow2", "json:{}", "raw");
    assert_chain_refused(f, "json.qcow2", "json:{}", "not on this host");
    write_qcow2(f, "lie.qcow2", "base.raw", "qcow2");
    assert_chain_refused(f, "lie.qcow2", "base.raw", "is no qcow2 image");
    write_qcow2(f, "self.qcow2", "self.qcow2", "qcow2");
    assert_chain_refused(f, "self.qcow2", "self.qcow2", "is its own backing file");
    write_qcow2(f, "a.qcow2", "b.qcow2", "qcow2");
    write_qcow2(f, "b.qcow2", "b.qcow2", "qcow2");
    assert_chain_refused(f, "a.qcow2", "b.qcow2", "is its own backing file");
    write_qcow2(f, "good.qcow2", "base.raw", "raw");
    assert_int_equal(try_open(f, "good.qcow2", DISK_FORMAT_AUTO, NULL), 0);
}

static void test_depth_is_bounded(void **state)
{
    struct folder *f = *state;
    uint8_t raw[4096] = {1};
    write_file(f, "0.qcow2", raw, sizeof raw);
    for (int i = 1; i <= IMAGE_DEPTH_MAX; i++) {
        char name[32], below[32];
        snprintf(name, sizeof name, "%d.qcow2", i);
        snprintf(below, sizeof below, "%d.qcow2", i - 1);
        write_qcow2(f, name, below, i == 1 ? "raw" : "qcow2");
    }
    char name[32];
    snprintf(name, sizeof name, "%d.qcow2", IMAGE_DEPTH_MAX - 1);
    assert_int_equal(try_open(f, name, DISK_FORMAT_AUTO, NULL), 0);
    snprintf(name, sizeof name, "%d.qcow2", IMAGE_DEPTH_MAX);
    assert_chain_refused(f, name, "0.qcow2", "more than 64 files");
}

static void test_a_guest_cannot_make_a_raw_disk_qcow2(void **state)
{
    struct folder *f = *state;
    uint8_t raw[4096] = {1};
    struct err err = {{0}};
    write_qcow2(f, "guest.img", "/etc/passwd", "raw"); /* what a guest wrote into a raw disk */
    assert_int_equal(try_open(f, "guest.img", DISK_FORMAT_AUTO, &err), -EINVAL);
    assert_non_null(strstr(err.text, "say format=qcow2, or format=raw"));
    assert_int_equal(try_open(f, "guest.img", DISK_FORMAT_RAW, NULL), 0);
    write_qcow2(f, "over.qcow2", "guest.img", "raw");
    assert_int_equal(try_open(f, "over.qcow2", DISK_FORMAT_AUTO, NULL), 0);
    write_qcow2(f, "old.qcow2", "guest.img", NULL); /* its format was not recorded */
    assert_chain_refused(f, "old.qcow2", "guest.img", "does not record");
    write_file(f, "torn.qcow2", raw, sizeof raw);
    assert_int_equal(try_open(f, "torn.qcow2", DISK_FORMAT_AUTO, &err), -EINVAL);
    assert_non_null(strstr(err.text, "has no qcow2 header though"));
    write_file(f, "plain.img", raw, sizeof raw);
    assert_int_equal(try_open(f, "plain.img", DISK_FORMAT_AUTO, NULL), 0);
    assert_int_equal(try_open(f, "plain.img", DISK_FORMAT_QCOW2, &err), -EINVAL);
    assert_non_null(strstr(err.text, "is no qcow2 image"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_headers_are_refused),
        cmocka_unit_test(test_unknown_feature_is_told_by_its_name),
        cmocka_unit_test(test_short_files_are_refused),
        cmocka_unit_test(test_bad_l1_and_refcount_tables_are_refused),
        cmocka_unit_test(test_refcount_loop_is_refused_and_mended),
        cmocka_unit_test(test_two_l1_entries_with_one_table_are_refused),
        cmocka_unit_test(test_bad_l2_entries_fail_and_spare_the_tables),
        cmocka_unit_test(test_broken_compressed_cluster_is_an_error),
        cmocka_unit_test(test_free_table_is_not_given_away),
        cmocka_unit_test(test_check_finds_and_mends),
        cmocka_unit_test(test_pointers_behind_the_end_stay_errors),
        cmocka_unit_test(test_bad_tables_keep_what_they_pointed_to),
        cmocka_unit_test(test_shared_cluster_is_parted),
        cmocka_unit_test(test_corrupt_mark_goes_when_all_is_mended),
        cmocka_unit_test(test_random_damage_ends),
        cmocka_unit_test_setup_teardown(test_bad_chains_are_refused_by_name, setup, teardown),
        cmocka_unit_test_setup_teardown(test_depth_is_bounded, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_guest_cannot_make_a_raw_disk_qcow2, setup, teardown),
    };
    return cmocka_run_group_tests_name("qcow2_damage", tests, NULL, NULL);
}
