/*
 * backend/disk/qcow2: a power cut at every single operation on the file. What was flushed before is
 * kept, each sector is old or new, and the tables are sound; with lazy refcounts after mending.
 *
 * What had not been flushed when the power went is lost, kept, or kept in part: any sectors of any
 * of the writes, in any order.
 */
#include "image_rig.h"

#define ZEROES_ID   0u
#define BACKING_ID  1u
#define FIRST_ID    2u
#define VARIANTS    6 /* of what reached the disk: nothing, all, and random parts */
#define MAX_HISTORY 4096u

struct shape {
    const char *name;
    struct qcow2_create create;
    bool backing, snapshot;
    unsigned large; /* the largest request is the disk through this */
    unsigned guest_ops;
    uint32_t table_clusters; /* of the refcount table, in the end at least */
};

static const struct shape shapes[] = {
    {"512 byte clusters", {192u << 10, 3, 512, 16, false, NULL, NULL}, false, false, 8, 100, 1},
    {"growing refcount table", {3u << 20, 3, 512, 64, false, NULL, NULL}, false, false, 2, 50, 2},
    {"4K clusters, backing", {512u << 10, 3, 4096, 16, false, "b", "raw"}, true, false, 8, 100, 1},
    {"64K clusters", {1u << 20, 3, 65536, 16, false, NULL, NULL}, false, false, 8, 100, 1},
    {"version 2", {512u << 10, 2, 4096, 16, false, NULL, NULL}, false, false, 8, 100, 1},
    {"snapshot", {512u << 10, 3, 4096, 16, false, NULL, NULL}, false, true, 8, 100, 1},
    {"lazy refcounts", {512u << 10, 3, 4096, 16, true, NULL, NULL}, false, false, 8, 100, 1},
    {"lazy, backing, snapshot", {256u << 10, 3, 1024, 16, true, "b", "r"}, true, true, 8, 100, 1},
};

enum guest_kind { GUEST_WRITE, GUEST_ZERO, GUEST_FLUSH };

struct guest_op {
    enum guest_kind kind;
    uint64_t sector, count;
    uint32_t id;       /* what the sectors hold afterwards */
    size_t begin, end; /* operations on the file before it and after it */
};

struct work {
    const struct shape *shape;
    struct mem_file *mem;   /* records */
    struct mem_file *start; /* as it was before */
    struct image *image;
    uint64_t sectors;
    uint32_t *initial; /* id of each sector */
    uint32_t *now;
    uint32_t *base; /* for find_base */
    struct guest_op *ops;
    unsigned op_count;
    uint8_t *buffer, *expected;
};

static unsigned long cuts, states;

/* Contents: each word of a sector tells who wrote it and where. */

static void fill_sector(uint8_t *data, uint32_t id, uint64_t sector)
{
    uint64_t word = id == ZEROES_ID ? 0 : (uint64_t)id << 32 | sector;
    for (unsigned i = 0; i < 512; i += 8)
        store_le64(data + i, word);
}

static bool holds(const uint8_t *data, uint32_t id, uint64_t sector)
{
    uint64_t word = id == ZEROES_ID ? 0 : (uint64_t)id << 32 | sector;
    return load_le64(data) == word && memcmp(data, data + 8, 504) == 0;
}

static struct image *open_backing(uint64_t sectors)
{
    struct mem_file *mem = mem_create(NULL, sectors * 512);
    mem->keep = false;
    for (uint64_t i = 0; i < sectors; i++)
        fill_sector(mem->data + i * 512, BACKING_ID, i);
    struct image *image;
    assert_int_equal(image_raw_open(&image, &mem->base, "backing", true, NULL), 0);
    return image;
}

static struct image *open_disk(const struct work *w, struct mem_file *mem)
{
    struct image *image = open_qcow2(mem, false);
    shrink_caches(image);
    if (w->shape->backing)
        image->backing = open_backing(w->sectors);
    return image;
}

/* The workload */

static void do_op(struct work *w, struct guest_op op)
{
    uint64_t offset = op.sector * 512, length = op.count * 512;
    op.begin = w->mem->op_count;
    if (op.kind == GUEST_WRITE) {
        for (uint64_t i = 0; i < op.count; i++)
            fill_sector(w->buffer + i * 512, op.id, op.sector + i);
        assert_int_equal(image_write(w->image, w->buffer, length, offset), 0);
    } else if (op.kind == GUEST_ZERO) {
        enum image_clear how = op.sector % 2 ? IMAGE_ZERO : IMAGE_ZERO_UNMAP;
        assert_int_equal(w->image->ops->clear(w->image, offset, length, how), 0);
    } else {
        assert_int_equal(w->image->ops->flush(w->image), 0);
    }
    for (uint64_t i = 0; i < op.count; i++)
        w->now[op.sector + i] = op.id;
    op.end = w->mem->op_count;
    w->ops[w->op_count++] = op;
}

static struct guest_op random_op(const struct work *w, uint64_t *seed, uint32_t id)
{
    uint64_t dice = next_random(seed) % 16, cluster = w->shape->create.cluster_size / 512;
    if (dice < 3)
        return (struct guest_op) {.kind = GUEST_FLUSH};
    uint64_t most = dice % 4 == 0 ? w->sectors / w->shape->large : 3 * cluster;
    uint64_t sector = next_random(seed) % w->sectors;
    uint64_t count = 1 + next_random(seed) % MIN(most, w->sectors - sector);
    if (dice >= 12)
        return (struct guest_op) {GUEST_ZERO, sector, count, ZEROES_ID, 0, 0};
    return (struct guest_op) {GUEST_WRITE, sector, count, id, 0, 0};
}

static void create_work(struct work *w, const struct shape *shape)
{
    *w = (struct work) {.shape = shape, .sectors = shape->create.size / 512};
    w->mem = make_qcow2(&shape->create);
    w->initial = calloc(w->sectors, sizeof *w->initial);
    w->now = calloc(w->sectors, sizeof *w->now);
    w->base = calloc(w->sectors, sizeof *w->base);
    w->buffer = malloc(shape->create.size);
    w->expected = malloc(shape->create.size);
    w->ops = calloc(MAX_HISTORY, sizeof *w->ops);
    for (uint64_t i = 0; i < w->sectors && shape->backing; i++)
        w->now[i] = BACKING_ID;
    uint64_t seed = 4711;
    if (shape->snapshot) {
        w->image = open_disk(w, w->mem);
        for (uint32_t i = 0; i < 20; i++)
            do_op(w, random_op(w, &seed, FIRST_ID + i));
        assert_int_equal(image_close(w->image), 0);
        add_snapshot(w->mem);
        w->op_count = 0;
    }
    memcpy(w->initial, w->now, w->sectors * sizeof *w->now);
    w->start = mem_create(w->mem->data, w->mem->size);
    w->mem->record = true;
}

static void play(struct work *w)
{
    uint64_t seed = 42;
    w->image = open_disk(w, w->mem);
    for (uint32_t i = 0; i < w->shape->guest_ops; i++)
        do_op(w, random_op(w, &seed, 1000 + i));
    assert_int_equal(image_close(w->image), 0);
}

static void destroy_work(struct work *w)
{
    mem_free(w->mem);
    mem_free(w->start);
    free(w->initial);
    free(w->now);
    free(w->base);
    free(w->ops);
    free(w->buffer);
    free(w->expected);
}

/* Power cuts */

/* The part of an operation that reached the disk: some of its sectors. */
static void apply_part(struct mem_file *mem, const struct mem_op *op, uint64_t *seed)
{
    if (op->kind != MEM_WRITE) {
        if (next_random(seed) % 2)
            mem_apply(mem, op);
        return;
    }
    uint64_t style = next_random(seed) % 4;
    for (uint64_t at = 0; at < op->length;) {
        uint64_t size = MIN(512 - (op->offset + at) % 512, op->length - at);
        bool kept = style == 0 ? false : style == 1 ? true : next_random(seed) % 2;
        if (kept)
            mem_apply(mem, &(struct mem_op) {MEM_WRITE, op->offset + at, size, op->data + at});
        at += size;
    }
}

/* Operations [from, to) were not flushed. The order of those that overlap may be any, too. */
static void apply_unflushed(struct mem_file *mem, const struct mem_file *log, size_t from,
                            size_t to, unsigned variant)
{
    uint64_t seed = 0x9e3779b97f4a7c15ull ^ (to * 1000003 + variant);
    if (variant == 0)
        return;
    size_t count = to - from, *order = malloc((count + 1) * sizeof *order);
    for (size_t i = 0; i < count; i++)
        order[i] = from + i;
    for (size_t i = count; variant > 1 && i > 1; i--) {
        size_t other = next_random(&seed) % i, kept = order[i - 1];
        order[i - 1] = order[other];
        order[other] = kept;
    }
    for (size_t i = 0; i < count; i++) {
        if (variant == 1)
            mem_apply(mem, &log->ops[order[i]]);
        else
            apply_part(mem, &log->ops[order[i]], &seed);
    }
    free(order);
}

/*
 * What a sector may hold after a cut before operation `cut`: what the last flush found (base, of
 * all sectors), or anything that was written since. The number of the last flush is returned.
 */
static unsigned find_base(const struct work *w, size_t cut, uint32_t *base)
{
    unsigned flushed = 0;
    for (unsigned i = 0; i < w->op_count; i++)
        if (w->ops[i].kind == GUEST_FLUSH && w->ops[i].end <= cut)
            flushed = i;
    memcpy(base, w->initial, w->sectors * sizeof *base);
    for (unsigned i = 0; i < flushed; i++)
        for (uint64_t k = 0; k < w->ops[i].count; k++)
            base[w->ops[i].sector + k] = w->ops[i].id;
    return flushed;
}

static void assert_sector(const struct work *w, const uint8_t *data, uint64_t sector, size_t cut,
                          unsigned flushed, uint32_t base)
{
    if (holds(data, base, sector))
        return;
    for (unsigned i = flushed; i < w->op_count && w->ops[i].begin < cut; i++) {
        const struct guest_op *op = &w->ops[i];
        if (sector >= op->sector && sector < op->sector + op->count && holds(data, op->id, sector))
            return;
    }
    fail_msg("%s: cut before operation %zu: sector %llu holds %#llx, flushed was %u",
             w->shape->name, cut, (unsigned long long)sector, (unsigned long long)load_le64(data),
             base);
}

static void assert_contents(struct work *w, struct image *image, size_t cut)
{
    unsigned flushed = find_base(w, cut, w->base);
    assert_int_equal(image_read(image, w->buffer, w->sectors * 512, 0), 0);
    for (uint64_t i = 0; i < w->sectors; i++)
        assert_sector(w, w->buffer + i * 512, i, cut, flushed, w->base[i]);
}

static void assert_snapshot(const struct work *w, const struct mem_file *mem)
{
    struct mem_file *copy = open_snapshot(mem);
    struct image *image = open_qcow2(copy, true);
    if (w->shape->backing)
        image->backing = open_backing(w->sectors);
    assert_int_equal(image_read(image, w->buffer, w->sectors * 512, 0), 0);
    for (uint64_t i = 0; i < w->sectors; i++)
        if (!holds(w->buffer + i * 512, w->initial[i], i))
            fail_msg("%s: the snapshot's sector %llu changed", w->shape->name,
                     (unsigned long long)i);
    image_close(image);
    mem_free(copy);
}

/* Goes on with what is left of the image: what is wrong in it would come out. */
static void assert_goes_on(struct work *w, struct image *image, size_t cut)
{
    uint64_t seed = cut + 1, length = MIN(w->sectors / 4, 64) * 512;
    uint8_t *before = w->expected;
    memcpy(before, w->buffer, w->sectors * 512);
    for (int i = 0; i < 4; i++) {
        uint64_t offset = next_random(&seed) % (w->sectors - length / 512) * 512;
        memset(before + offset, i + 1, length);
        assert_int_equal(image_write(image, before + offset, length, offset), 0);
    }
    assert_int_equal(image->ops->flush(image), 0);
    assert_int_equal(image_read(image, w->buffer, w->sectors * 512, 0), 0);
    assert_memory_equal(w->buffer, before, w->sectors * 512);
}

static void assert_survived(struct work *w, struct mem_file *mem, size_t cut, unsigned variant)
{
    struct qcow2_report report = check_qcow2(mem, false, false);
    bool lazy = w->shape->create.lazy_refcounts;
    bool dirty = load_be64(mem->data + QCOW2_AT_INCOMPATIBLE) & QCOW2_INCOMPATIBLE_DIRTY;
    if (report.errors || report.bad_flags || (report.bad_refcounts && !(lazy && dirty))) {
        check_qcow2(mem, false, true);
        fail_msg("%s: cut before operation %zu, variant %u: damaged", w->shape->name, cut, variant);
    }
    struct image *image = open_disk(w, mem);
    assert_contents(w, image, cut);
    if (variant % 2)
        assert_goes_on(w, image, cut);
    assert_int_equal(image_close(image), 0);
    assert_sound(mem, !lazy);
    if (w->shape->snapshot)
        assert_snapshot(w, mem);
    states++;
}

static void cut_everywhere(struct work *w)
{
    struct mem_file *durable = mem_create(w->start->data, w->start->size);
    struct mem_file *mem = mem_create(NULL, 0);
    size_t flushed = 0; /* operations before are in durable */
    for (size_t cut = 0; cut <= w->mem->op_count; cut++) {
        cuts++;
        for (unsigned variant = 0; variant < VARIANTS; variant++) {
            if (variant && cut == flushed)
                break; /* nothing is in flight */
            mem_set(mem, durable);
            apply_unflushed(mem, w->mem, flushed, cut, variant);
            assert_survived(w, mem, cut, variant);
        }
        if (cut < w->mem->op_count && w->mem->ops[cut].kind == MEM_FLUSH)
            for (; flushed <= cut; flushed++)
                mem_apply(durable, &w->mem->ops[flushed]);
    }
    mem_free(mem);
    mem_free(durable);
}

static void test_power_cut_at_every_operation(void **state)
{
    log_set_level(LOG_ERROR);
    for (size_t i = 0; i < ARRAY_COUNT(shapes); i++) {
        struct work w;
        unsigned long cuts_before = cuts, states_before = states;
        create_work(&w, &shapes[i]);
        play(&w);
        uint32_t clusters = load_be32(w.mem->data + QCOW2_AT_REFCOUNT_CLUSTERS);
        assert_true(clusters >= shapes[i].table_clusters);
        cut_everywhere(&w);
        printf("%s: %lu power cuts, %lu states of the file\n", shapes[i].name, cuts - cuts_before,
               states - states_before);
        destroy_work(&w);
    }
    printf("%lu power cuts, %lu states of the file\n", cuts, states);
}

/* Resizing and mending */

typedef void step_fn(struct mem_file *mem);
typedef void verify_fn(struct mem_file *mem);

/* Plays step on a copy of an image, cut everywhere; verify looks at each state. */
static void cut_step(const struct mem_file *start, step_fn *step, verify_fn *verify)
{
    struct mem_file *log = mem_create(start->data, start->size);
    log->record = true;
    step(log);
    struct mem_file *durable = mem_create(start->data, start->size);
    size_t flushed = 0;
    for (size_t cut = 0; cut <= log->op_count; cut++) {
        for (unsigned variant = 0; variant < VARIANTS; variant++) {
            struct mem_file *mem = mem_create(durable->data, durable->size);
            apply_unflushed(mem, log, flushed, cut, variant);
            verify(mem);
            mem_free(mem);
        }
        if (cut < log->op_count && log->ops[cut].kind == MEM_FLUSH)
            for (; flushed <= cut; flushed++)
                mem_apply(durable, &log->ops[flushed]);
    }
    assert_true(log->op_count > 3);
    mem_free(durable);
    mem_free(log);
}

#define SMALL_SIZE (64u << 10)
#define LARGE_SIZE (640u << 10)

static struct mem_file *filled_image(void)
{
    struct qcow2_create create = {SMALL_SIZE, 3, 512, 16, false, NULL, NULL};
    struct mem_file *mem = make_qcow2(&create);
    struct image *image = open_qcow2(mem, false);
    uint8_t data[512];
    for (uint64_t i = 0; i < SMALL_SIZE / 512; i++) {
        fill_sector(data, FIRST_ID, i);
        assert_int_equal(image_write(image, data, 512, i * 512), 0);
    }
    assert_int_equal(image_close(image), 0);
    return mem;
}

static void assert_filled(struct mem_file *mem, bool may_be_larger)
{
    struct image *image = open_qcow2(mem, false);
    assert_true(image->size == SMALL_SIZE || (may_be_larger && image->size == LARGE_SIZE));
    uint8_t *data = malloc(LARGE_SIZE);
    assert_int_equal(image_read(image, data, image->size, 0), 0);
    for (uint64_t i = 0; i < image->size / 512; i++)
        assert_true(holds(data + i * 512, i < SMALL_SIZE / 512 ? FIRST_ID : ZEROES_ID, i));
    free(data);
    assert_int_equal(image_close(image), 0);
}

static void grow(struct mem_file *mem)
{
    struct image *image = open_qcow2(mem, false);
    assert_int_equal(image->ops->resize(image, LARGE_SIZE, NULL), 0);
    assert_int_equal(image_close(image), 0);
}

static void verify_grown(struct mem_file *mem)
{
    assert_sound(mem, true);
    assert_filled(mem, true);
}

static void test_power_cut_while_growing(void **state)
{
    struct mem_file *start = filled_image();
    cut_step(start, grow, verify_grown);
    mem_free(start);
}

static void mend(struct mem_file *mem)
{
    assert_true(check_qcow2(mem, true, false).mended);
    assert_sound(mem, false);
}

static void verify_mended(struct mem_file *mem)
{
    struct qcow2_report report = check_qcow2(mem, true, false);
    assert_int_equal(report.errors, 0);
    assert_sound(mem, false);
    assert_filled(mem, false);
}

static void test_power_cut_while_mending(void **state)
{
    struct mem_file *start = filled_image();
    uint64_t table = load_be64(start->data + QCOW2_AT_REFCOUNT_OFFSET);
    uint8_t *block = start->data + load_be64(start->data + table);
    store_be16(block + 5 * 2, 0);
    store_be16(block + 7 * 2, 3);
    store_be16(block + 250 * 2, 1);
    cut_step(start, mend, verify_mended);
    mem_free(start);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_power_cut_at_every_operation),
        cmocka_unit_test(test_power_cut_while_growing),
        cmocka_unit_test(test_power_cut_while_mending),
    };
    return cmocka_run_group_tests_name("qcow2_crash", tests, NULL, NULL);
}
