/*
 * Fuzz target: qcow2 images: opening, reads, writes, discards, resizing, checking and mending.
 *
 * The input is a byte of choices, the number of requests, a seed for them, and the file; or, as one
 * of the choices, patches of an image that is made here: an offset, a length, bytes. Whatever the
 * file holds, nothing may crash or run on. An image that a check calls sound stays sound and keeps
 * what is written to it; one that was mended is sound.
 */
#include "fuzz.h"

#include <errno.h>

#include "backend/disk/image.h"
#include "backend/disk/qcow2.h"
#include "base/log.h"

#define FILE_MAX     (4u << 20)
#define MODEL_MAX    (256u << 10) /* larger disks are used without a model */
#define REQUEST_MAX  16384u
#define REQUESTS_MAX 24u

enum {
    CHOICE_READ_ONLY = 1,
    CHOICE_REPAIR = 2,
    CHOICE_BACKING = 4,
    CHOICE_RESIZE = 8,
    CHOICE_PATCHED = 16, /* bits 5 and 6: which image */
};

static const struct qcow2_create creates[] = {
    {32768, 3, 512, 16, false, NULL, NULL},
    {32768, 2, 512, 16, false, NULL, NULL},
    {65536, 3, 4096, 1, false, NULL, NULL},
    {65536, 3, 1024, 64, true, NULL, NULL},
};

/* The file in memory */

struct memory {
    struct image_file base;
    uint8_t *data; /* FILE_MAX bytes */
    uint64_t size;
};

static struct memory *memory_of(struct image_file *file)
{
    return (struct memory *)file;
}

static int memory_readv(struct image_file *file, const struct image_io *io)
{
    struct memory *memory = memory_of(file);
    uint64_t at = io->offset;
    for (unsigned i = 0; i < io->iov_count; i++) {
        uint64_t size = io->iov[i].iov_len, inside = 0;
        if (at < memory->size)
            inside = MIN(size, memory->size - at);
        if (inside)
            memcpy(io->iov[i].iov_base, memory->data + at, inside);
        memset((uint8_t *)io->iov[i].iov_base + inside, 0, size - inside);
        at += size;
    }
    return 0;
}

static int memory_resize(struct image_file *file, uint64_t size)
{
    struct memory *memory = memory_of(file);
    if (size > FILE_MAX)
        return -EFBIG;
    if (size > memory->size)
        memset(memory->data + memory->size, 0, size - memory->size);
    memory->size = size;
    return 0;
}

static int memory_writev(struct image_file *file, const struct image_io *io)
{
    struct memory *memory = memory_of(file);
    if (!range_fits(io->offset, io->length, FILE_MAX))
        return -ENOSPC;
    if (io->offset + io->length > memory->size)
        memory_resize(file, io->offset + io->length);
    uint8_t *at = memory->data + io->offset;
    for (unsigned i = 0; i < io->iov_count; i++) {
        memcpy(at, io->iov[i].iov_base, io->iov[i].iov_len);
        at += io->iov[i].iov_len;
    }
    return 0;
}

static int memory_flush(struct image_file *file)
{
    return 0;
}

static int memory_zero(struct image_file *file, uint64_t offset, uint64_t length, bool unmap)
{
    struct memory *memory = memory_of(file);
    if (offset < memory->size)
        memset(memory->data + offset, 0, MIN(length, memory->size - offset));
    return 0;
}

static int memory_size(struct image_file *file, uint64_t *out)
{
    *out = memory_of(file)->size;
    return 0;
}

static int memory_map(struct image_file *file, uint64_t offset, uint64_t *length, bool *stored)
{
    *stored = offset < memory_of(file)->size;
    return 0;
}

static void memory_close(struct image_file *file)
{
}

static const struct image_file_ops memory_ops = {
    .readv = memory_readv,
    .writev = memory_writev,
    .flush = memory_flush,
    .zero = memory_zero,
    .resize = memory_resize,
    .size = memory_size,
    .map = memory_map,
    .close = memory_close,
};

static struct memory file, backing;
static struct memory made[ARRAY_COUNT(creates)];
static uint8_t model[MODEL_MAX], buffer[MODEL_MAX];

/* An image with data, zero clusters and holes. */
static void make_image(struct memory *memory, const struct qcow2_create *create)
{
    struct image *image;
    uint8_t data[8192];
    *memory = (struct memory) {{&memory_ops}, malloc(FILE_MAX), 0};
    fuzz_must(memory->data);
    fuzz_must(qcow2_create(&memory->base, "image", create, NULL) == 0);
    fuzz_must(qcow2_open(&image, &memory->base, "image", false, NULL) == 0);
    memset(data, 0x11, sizeof data);
    for (uint64_t at = 0; at < 24576; at += 12288)
        fuzz_must(image_write(image, data, sizeof data, at) == 0);
    fuzz_must(image->ops->clear(image, 2048, 4096, IMAGE_ZERO) == 0);
    fuzz_must(image->ops->flush(image) == 0);
    image_close(image);
}

static void patch_image(const struct memory *from, struct fuzz_input *in)
{
    memory_resize(&file.base, from->size);
    memcpy(file.data, from->data, from->size);
    while (in->left) {
        uint8_t bytes[8];
        uint16_t at = fuzz_u16(in);
        unsigned length = 1 + fuzz_u8(in) % sizeof bytes;
        fuzz_take(in, bytes, length);
        memcpy(file.data + at % (file.size - sizeof bytes), bytes, length);
    }
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    log_set_level(LOG_ERROR - 1);
    file = (struct memory) {{&memory_ops}, malloc(FILE_MAX), 0};
    backing = (struct memory) {{&memory_ops}, malloc(FILE_MAX), 0};
    fuzz_must(file.data && backing.data);
    memory_resize(&backing.base, 20000);
    memset(backing.data, 0xb5, 20000);
    for (size_t i = 0; i < ARRAY_COUNT(creates); i++)
        make_image(&made[i], &creates[i]);
    return 0;
}

/* Checking */

/* False when it could not be checked. */
static bool check(bool repair, struct qcow2_report *report)
{
    struct qcow2_check how = {.name = "image", .repair = repair};
    struct err err = {{0}};
    int error = qcow2_check(&file.base, &how, report, &err);
    if (error && strncmp(err.text, "image: ", 7) != 0)
        fuzz_fail("a failure that names no file: '%s'", err.text);
    return !error;
}

static bool is_sound(const struct qcow2_report *report)
{
    return !report->errors && !report->bad_refcounts && !report->bad_flags;
}

static void check_mending(void)
{
    struct qcow2_report before, after;
    if (!check(true, &before) || before.errors)
        return;
    if (!check(false, &after) || !is_sound(&after) || after.leaks)
        fuzz_fail("what was mended is not sound");
}

/* Using */

static struct image *open_image(uint8_t choices)
{
    struct image *image = NULL;
    struct err err = {{0}};
    if (qcow2_open(&image, &file.base, "image", choices & CHOICE_READ_ONLY, &err)) {
        if (strncmp(err.text, "image: ", 7) != 0)
            fuzz_fail("a refusal that names no file: '%s'", err.text);
        return NULL;
    }
    if (choices & CHOICE_BACKING)
        fuzz_must(image_raw_open(&image->backing, &backing.base, "backing", true, NULL) == 0);
    return image;
}

/* A request on the image and the model, NULL where there is none. What fails changes neither. */
static void use(struct image *image, bool modelled, uint64_t *seed)
{
    uint64_t sectors = image->size / IMAGE_SECTOR, at = fuzz_mix(seed) % sectors * IMAGE_SECTOR;
    uint64_t length = fuzz_mix(seed) % (REQUEST_MAX / IMAGE_SECTOR) * IMAGE_SECTOR + IMAGE_SECTOR;
    uint64_t what = fuzz_mix(seed) % 8;
    uint8_t data[REQUEST_MAX];
    int error = 0;
    length = MIN(length, image->size - at);
    memset(data, (int)(*seed & 0xff), length);
    if (what < 3 && !image->read_only) {
        error = image_write(image, data, length, at);
        if (!error && modelled)
            memcpy(model + at, data, length);
    } else if (what < 5 && !image->read_only) {
        enum image_clear how = what == 3 ? IMAGE_ZERO : IMAGE_ZERO_UNMAP;
        error = image->ops->clear(image, at, length, how);
        if (!error && modelled)
            memset(model + at, 0, length);
    } else if (what == 5) {
        error = image->ops->flush(image);
    } else {
        error = image_read(image, data, length, at);
        if (!error && modelled && memcmp(data, model + at, length) != 0)
            fuzz_fail("a read differs from what was written");
    }
    if (error && modelled && error != -ENOSPC && error != -EFBIG)
        fuzz_fail("a request on a sound image failed with %d", error);
}

/* Uses the image; *full: it met the end of the memory, so that some of it is not as the model. */
static void use_image(struct image *image, bool modelled, unsigned requests, uint64_t seed,
                      uint8_t choices)
{
    for (unsigned i = 0; i < requests && image->size; i++)
        use(image, modelled, &seed);
    if (choices & CHOICE_RESIZE && !image->read_only && !modelled)
        (void)!image->ops->resize(image, fuzz_mix(&seed) % (1u << 22) * IMAGE_SECTOR, NULL);
    if (modelled && image_read(image, buffer, image->size, 0) == 0 &&
        memcmp(buffer, model, image->size) != 0)
        fuzz_fail("the disk differs from what was written");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};
    uint8_t choices = fuzz_u8(&in);
    unsigned requests = fuzz_u8(&in) % REQUESTS_MAX;
    uint64_t seed = fuzz_u64(&in);
    struct qcow2_report before = {0}, after = {0};

    memory_resize(&file.base, 0);
    if (choices & CHOICE_PATCHED) {
        patch_image(&made[choices >> 5 & 3], &in);
    } else {
        memory_resize(&file.base, MIN(in.left, FILE_MAX / 4));
        memcpy(file.data, in.data, file.size);
    }
    if (choices & CHOICE_REPAIR)
        check_mending();
    bool sound = check(false, &before) && is_sound(&before);
    struct image *image = open_image(choices);
    if (!image)
        return 0;
    bool modelled =
        sound && image->size <= MODEL_MAX && image_read(image, model, image->size, 0) == 0;
    use_image(image, modelled, requests, seed, choices);
    image_close(image);
    /* COPIED flags may be missing afterwards where clusters of the disk had shared one. */
    if (sound && (!check(false, &after) || after.errors || after.bad_refcounts))
        fuzz_fail("a sound image was damaged");
    check_mending();
    return 0;
}
