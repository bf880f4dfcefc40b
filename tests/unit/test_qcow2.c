/* backend/disk/qcow2: what is written comes back, in every shape of image, and images stay sound.
 */
#include "image_rig.h"

#include <pthread.h>
#include <sched.h>

struct shape {
    const char *name;
    struct qcow2_create create;
    uint64_t backing_size; /* 0: none */
    bool snapshot;
};

static const struct shape shapes[] = {
    {"64K clusters", {4u << 20, 3, 65536, 16, false, NULL, NULL}, 0, false},
    {"version 2", {4u << 20, 2, 65536, 16, false, NULL, NULL}, 0, false},
    {"512 byte clusters", {1u << 20, 3, 512, 16, false, NULL, NULL}, 0, false},
    {"lazy refcounts", {4u << 20, 3, 4096, 16, true, NULL, NULL}, 0, false},
    {"1 bit refcounts", {4u << 20, 3, 4096, 1, false, NULL, NULL}, 0, false},
    {"64 bit refcounts, growing table", {6u << 20, 3, 512, 64, false, NULL, NULL}, 0, false},
    {"2M clusters", {16u << 20, 3, 2u << 20, 16, false, NULL, NULL}, 0, false},
    {"odd size", {(4u << 20) - 1536, 3, 65536, 16, false, NULL, NULL}, 0, false},
    {"backing", {4u << 20, 3, 4096, 16, false, "b", "raw"}, 4u << 20, false},
    {"short backing", {4u << 20, 3, 65536, 16, false, "b", "raw"}, (1u << 20) + 512, false},
    {"version 2, backing", {2u << 20, 2, 4096, 16, false, "b", "raw"}, 2u << 20, false},
    {"snapshot", {4u << 20, 3, 4096, 16, false, NULL, NULL}, 0, true},
    {"snapshot, backing, lazy", {4u << 20, 3, 4096, 16, true, "b", "raw"}, 4u << 20, true},
};

static void fill(uint8_t *data, uint64_t size, uint64_t seed)
{
    seed = seed * 2654435761u + 88172645463325252ull;
    for (uint64_t i = 0; i + 8 <= size; i += 8)
        store_le64(data + i, next_random(&seed));
}

static struct image *raw_backing(const struct shape *shape, uint8_t *model, uint64_t size)
{
    struct mem_file *mem = mem_create(NULL, shape->backing_size);
    mem->keep = false;
    fill(mem->data, shape->backing_size, 7);
    memcpy(model, mem->data, MIN(size, shape->backing_size));
    struct image *image;
    assert_int_equal(image_raw_open(&image, &mem->base, "backing", true, NULL), 0);
    return image;
}

struct rig {
    const struct shape *shape;
    struct mem_file *mem;
    struct image *image;
    uint8_t *model, *buffer;
    uint64_t size;
};

static void open_rig(struct rig *r)
{
    r->image = open_qcow2(r->mem, false);
    shrink_caches(r->image);
    if (r->shape->backing_size) {
        uint8_t *scratch = malloc(r->size);
        r->image->backing = raw_backing(r->shape, scratch, r->size);
        free(scratch);
    }
}

static void create_rig(struct rig *r, const struct shape *shape)
{
    *r = (struct rig) {.shape = shape, .size = shape->create.size};
    r->mem = make_qcow2(&shape->create);
    r->model = calloc(1, r->size);
    r->buffer = malloc(r->size);
    if (shape->backing_size)
        image_close(raw_backing(shape, r->model, r->size));
    open_rig(r);
}

static void close_rig(struct rig *r)
{
    assert_int_equal(image_close(r->image), 0);
    r->image = NULL;
}

static void destroy_rig(struct rig *r)
{
    if (r->image)
        close_rig(r);
    mem_free(r->mem);
    free(r->model);
    free(r->buffer);
}

static void assert_same(struct rig *r)
{
    assert_int_equal(image_read(r->image, r->buffer, r->size, 0), 0);
    for (uint64_t at = 0; at < r->size; at += 512)
        if (memcmp(r->buffer + at, r->model + at, 512) != 0)
            fail_msg("%s: sector %llu differs", r->shape->name, (unsigned long long)at / 512);
}

/* One random request, done to the image and to the model. */
static void play_one(struct rig *r, uint64_t *seed)
{
    uint64_t sectors = r->size / 512, at = next_random(seed) % sectors;
    uint64_t most = next_random(seed) % 8 ? 64 : 2048;
    uint64_t count = 1 + next_random(seed) % MIN(sectors - at, most);
    uint64_t offset = at * 512, length = count * 512;
    switch (next_random(seed) % 8) {
    case 0:
    case 1:
    case 2:
        fill(r->model + offset, length, next_random(seed));
        assert_int_equal(image_write(r->image, r->model + offset, length, offset), 0);
        break;
    case 3:
        memset(r->model + offset, 0, length);
        assert_int_equal(r->image->ops->clear(r->image, offset, length, IMAGE_ZERO), 0);
        break;
    case 4:
        memset(r->model + offset, 0, length);
        assert_int_equal(r->image->ops->clear(r->image, offset, length, IMAGE_ZERO_UNMAP), 0);
        break;
    case 5: /* what a discard leaves is the image's choice */
        assert_int_equal(r->image->ops->clear(r->image, offset, length, IMAGE_DISCARD), 0);
        assert_int_equal(image_read(r->image, r->model + offset, length, offset), 0);
        break;
    case 6:
        assert_int_equal(image_read(r->image, r->buffer, length, offset), 0);
        assert_memory_equal(r->buffer, r->model + offset, length);
        break;
    case 7:
        assert_int_equal(r->image->ops->flush(r->image), 0);
        break;
    }
}

static void play(struct rig *r, unsigned count, uint64_t seed)
{
    for (unsigned i = 0; i < count; i++)
        play_one(r, &seed);
    assert_same(r);
}

static void test_random_requests_match_a_model(void **state)
{
    for (size_t i = 0; i < ARRAY_COUNT(shapes); i++) {
        struct rig r;
        create_rig(&r, &shapes[i]);
        play(&r, 300, 11 + i);
        close_rig(&r);
        assert_sound(r.mem, false);
        uint8_t *then = malloc(r.size);
        memcpy(then, r.model, r.size);
        if (shapes[i].snapshot)
            add_snapshot(r.mem);
        open_rig(&r);
        assert_same(&r);
        play(&r, 300, 23 + i);
        close_rig(&r);
        assert_sound(r.mem, false);
        if (shapes[i].snapshot) { /* it is as it was */
            struct rig old = r;
            old.mem = open_snapshot(r.mem);
            old.model = then;
            open_rig(&old);
            assert_same(&old);
            close_rig(&old);
            mem_free(old.mem);
        }
        free(then);
        destroy_rig(&r);
    }
}

static void test_lazy_image_left_open_is_mended(void **state)
{
    struct rig r;
    create_rig(&r, &shapes[3]);
    play(&r, 200, 5);
    assert_int_equal(r.image->ops->flush(r.image), 0);
    struct mem_file *left = mem_create(r.mem->data, r.mem->size);
    assert_true(load_be64(left->data + QCOW2_AT_INCOMPATIBLE) & QCOW2_INCOMPATIBLE_DIRTY);
    assert_true(check_qcow2(left, false, false).bad_refcounts > 0);
    struct rig again = r;
    again.mem = left;
    open_rig(&again);
    assert_false(load_be64(left->data + QCOW2_AT_INCOMPATIBLE) & QCOW2_INCOMPATIBLE_DIRTY);
    assert_same(&again);
    close_rig(&again);
    assert_sound(left, false);
    mem_free(left);
    destroy_rig(&r);
}

static void test_discard_gives_clusters_back(void **state)
{
    struct rig r;
    create_rig(&r, &shapes[3]);
    fill(r.model, r.size, 3);
    for (int pass = 0; pass < 4; pass++) {
        assert_int_equal(image_write(r.image, r.model, r.size, 0), 0);
        assert_int_equal(r.image->ops->flush(r.image), 0);
        assert_same(&r);
        assert_int_equal(r.image->ops->clear(r.image, 0, r.size, IMAGE_DISCARD), 0);
        assert_int_equal(r.image->ops->flush(r.image), 0);
    }
    close_rig(&r);
    assert_true(r.mem->size < r.size + r.size / 4); /* the second pass took what the first left */
    assert_int_equal(check_qcow2(r.mem, false, false).data_clusters, 0);
    destroy_rig(&r);
}

/* Resizing */

static void resize(struct rig *r, uint64_t size)
{
    struct err err = {{0}};
    if (r->image->ops->resize(r->image, size, &err))
        fail_msg("%s", err.text);
    r->model = realloc(r->model, size);
    r->buffer = realloc(r->buffer, size);
    if (size > r->size)
        memset(r->model + r->size, 0, size - r->size);
    r->size = size;
}

static void test_resize_keeps_data_and_shows_zeroes(void **state)
{
    for (size_t i = 0; i < ARRAY_COUNT(shapes); i++) {
        struct rig r;
        create_rig(&r, &shapes[i]);
        play(&r, 100, 31 + i);
        if (shapes[i].create.version >= 3 || !shapes[i].backing_size)
            resize(&r, shapes[i].create.size / 1024 * 512 + 512);
        play(&r, 50, 37 + i);
        resize(&r, shapes[i].create.size * 4);
        assert_same(&r);
        play(&r, 100, 41 + i);
        close_rig(&r);
        assert_sound(r.mem, false);
        open_rig(&r);
        assert_int_equal(r.image->size, r.size);
        assert_same(&r);
        destroy_rig(&r);
    }
}

/* Errors of the host */

static void test_failed_writes_lose_nothing_that_was_flushed(void **state)
{
    static const int errors[] = {ENOSPC, EIO};
    unsigned long failures = 0;
    for (size_t e = 0; e < ARRAY_COUNT(errors); e++)
        for (long at = 0; at < 120; at++) {
            struct rig r;
            create_rig(&r, &shapes[8]);
            fill(r.model, 65536, 1);
            assert_int_equal(image_write(r.image, r.model, 65536, 0), 0);
            assert_int_equal(r.image->ops->flush(r.image), 0);
            r.mem->fail_at = at;
            r.mem->fail_with = errors[e];
            uint64_t seed = 99;
            for (unsigned i = 0; i < 40; i++) {
                uint64_t offset = 65536 + next_random(&seed) % 4096 * 512;
                failures += image_write(r.image, r.buffer, 1024, offset) != 0;
                failures += r.image->ops->clear(r.image, 1u << 20, 65536, IMAGE_DISCARD) != 0;
                failures += r.image->ops->flush(r.image) != 0;
            }
            r.mem->fail_at = -1;
            assert_int_equal(image_read(r.image, r.buffer, 65536, 0), 0);
            assert_memory_equal(r.buffer, r.model, 65536);
            int closed = image_close(r.image);
            assert_true(closed == 0 || closed == -errors[e]);
            r.image = NULL;
            assert_sound(r.mem, true);
            destroy_rig(&r);
        }
    assert_true(failures > 200);
}

/* Threads */

#define THREADS 4

struct hammer {
    struct rig *r;
    unsigned number;
    int error;
};

/* Each thread has every fourth kilobyte to itself, so that they meet in all clusters. */
static void *hammer(void *context)
{
    struct hammer *h = context;
    uint64_t seed = 1000 + h->number;
    uint8_t out[1024], in[1024];
    for (unsigned i = 0; i < 400 && !h->error; i++) {
        uint64_t slot = next_random(&seed) % (h->r->size / 1024 / THREADS);
        uint64_t offset = (slot * THREADS + h->number) * 1024;
        fill(out, sizeof out, next_random(&seed));
        h->error = image_write(h->r->image, out, sizeof out, offset);
        memcpy(h->r->model + offset, out, sizeof out);
        if (!h->error && i % 16 == 0)
            h->error = h->r->image->ops->flush(h->r->image);
        if (!h->error)
            h->error = image_read(h->r->image, in, sizeof in, offset);
        if (!h->error && memcmp(in, out, sizeof in) != 0)
            h->error = -EILSEQ;
        if (!h->error && i % 32 == 31) {
            h->error = h->r->image->ops->clear(h->r->image, offset, sizeof out, IMAGE_ZERO_UNMAP);
            memset(h->r->model + offset, 0, sizeof out);
        }
    }
    return NULL;
}

/* A file in memory is not for several threads: a lock around each operation. */
struct locked_file {
    struct image_file base;
    struct mem_file *mem;
    pthread_mutex_t lock;
};

#define LOCKED(call)                                                                               \
    struct locked_file *locked = (struct locked_file *)file;                                       \
    pthread_mutex_lock(&locked->lock);                                                             \
    int error = call;                                                                              \
    pthread_mutex_unlock(&locked->lock);                                                           \
    return error

static int locked_readv(struct image_file *file, const struct image_io *io)
{
    LOCKED(mem_readv(&locked->mem->base, io));
}

static int locked_writev(struct image_file *file, const struct image_io *io)
{
    LOCKED(mem_writev(&locked->mem->base, io));
}

static int locked_flush(struct image_file *file)
{
    sched_yield();
    LOCKED(mem_flush(&locked->mem->base));
}

static int locked_zero(struct image_file *file, uint64_t offset, uint64_t length, bool unmap)
{
    LOCKED(mem_zero(&locked->mem->base, offset, length, unmap));
}

static int locked_resize(struct image_file *file, uint64_t size)
{
    LOCKED(mem_resize(&locked->mem->base, size));
}

static int locked_size(struct image_file *file, uint64_t *out)
{
    LOCKED(mem_size(&locked->mem->base, out));
}

static void locked_close(struct image_file *file)
{
}

static const struct image_file_ops locked_ops = {
    .readv = locked_readv,
    .writev = locked_writev,
    .flush = locked_flush,
    .zero = locked_zero,
    .resize = locked_resize,
    .size = locked_size,
    .map = mem_map,
    .close = locked_close,
};

static void hammer_shape(const struct shape *shape)
{
    struct rig r;
    create_rig(&r, shape);
    close_rig(&r);
    struct locked_file file = {{&locked_ops}, r.mem, PTHREAD_MUTEX_INITIALIZER};
    struct err err = {{0}};
    if (qcow2_open(&r.image, &file.base, "test", false, &err))
        fail_msg("%s", err.text);
    shrink_caches(r.image);
    struct hammer hammers[THREADS];
    pthread_t threads[THREADS];
    for (unsigned i = 0; i < THREADS; i++) {
        hammers[i] = (struct hammer) {&r, i, 0};
        assert_int_equal(pthread_create(&threads[i], NULL, hammer, &hammers[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    for (unsigned i = 0; i < THREADS; i++)
        assert_int_equal(hammers[i].error, 0);
    assert_same(&r);
    close_rig(&r);
    assert_sound(r.mem, false);
    destroy_rig(&r);
}

static void test_threads_meet_in_clusters(void **state)
{
    hammer_shape(&shapes[0]);
    hammer_shape(&shapes[2]);
    hammer_shape(&shapes[3]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_requests_match_a_model),
        cmocka_unit_test(test_lazy_image_left_open_is_mended),
        cmocka_unit_test(test_discard_gives_clusters_back),
        cmocka_unit_test(test_resize_keeps_data_and_shows_zeroes),
        cmocka_unit_test(test_failed_writes_lose_nothing_that_was_flushed),
        cmocka_unit_test(test_threads_meet_in_clusters),
    };
    return cmocka_run_group_tests_name("qcow2", tests, NULL, NULL);
}
