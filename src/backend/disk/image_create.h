/*
 * New images and copies of images. A new file has a temporary name beside its own until it is
 * complete: whoever finds a file of the name that was asked for finds a whole image. One thread.
 */
#ifndef PARAT_BACKEND_DISK_IMAGE_CREATE_H
#define PARAT_BACKEND_DISK_IMAGE_CREATE_H

#include "backend/disk/image.h"
#include "backend/disk/qcow2.h"

struct image_create {
    enum disk_format format;   /* not AUTO */
    struct qcow2_create qcow2; /* its size counts for every format */
};

/* An image that is being made. */
struct image_new {
    char *path, *temporary;
    struct image *image; /* open for writing, reads as zeroes */
};

/* On failure there is nothing left to finish or to abort. Sentences begin with the path. */
int image_create_begin(struct image_new *out, const char *path, const struct image_create *create,
                       struct err *err) MUST_USE;
/* Closes, flushes and gives the file its name; on failure nothing is left. */
int image_create_finish(struct image_new *made, struct err *err) MUST_USE;
/* Removes what was made. */
void image_create_abort(struct image_new *made);

/* Called now and then with how far it is, in bytes of the disk; false: stop. */
struct image_watch {
    bool (*go_on)(void *context, uint64_t done, uint64_t total);
    void *context;
};

/* Copies to an image that reads as zeroes; zeroes are not written. -ECANCELED when it was stopped.
 * The sentence names the image that failed. */
int image_copy(struct image *to, struct image *from, const struct image_watch *watch,
               struct err *err) MUST_USE;

#endif
