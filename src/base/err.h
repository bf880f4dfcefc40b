/*
 * Errors. Functions return 0 or a negative errno; where a person has to act on a failure, a
 * `struct err` carries one sentence that names the option, the file and the reason.
 */
#ifndef PARAT_BASE_ERR_H
#define PARAT_BASE_ERR_H

struct err {
    char text[512];
};

/*
 * Stores the sentence (cut at the buffer's size) and returns -error, so that callers can write
 * `return err_set(err, EINVAL, "--cpus 0: …")`. error is a positive errno. err may be NULL.
 */
int err_set(struct err *err, int error, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "prefix: " before the sentence that is there; returns error unchanged (a negative errno). */
int err_prefix(struct err *err, int error, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
