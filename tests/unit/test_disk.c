/* backend/disk: all I/O paths move the same bytes, bad files are refused by name, locks hold. */
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backend/disk/disk.h"
#include "backend/disk/image_create.h"

#define DISK_SIZE (1u << 20)

struct fixture {
    bool uring;
    enum disk_format format;
    char path[64];
    struct disk *disk;
};

static void make_file(struct fixture *f, off_t size)
{
    strcpy(f->path, "/tmp/parat-test-disk-XXXXXX");
    int fd = mkstemp(f->path);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, size), 0);
    close(fd);
}

static struct disk *open_disk(const struct fixture *f, bool direct)
{
    struct disk_config config = {.path = f->path,
                                 .format = f->format,
                                 .direct = direct,
                                 .use_io_uring = f->uring,
                                 .queue_count = 2};
    struct err err = {{0}};
    struct disk *disk = NULL;
    if (disk_open(&disk, &config, &err))
        fail_msg("%s", err.text);
    return disk;
}

static int setup(void **state, bool uring)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->uring = uring;
    make_file(f, DISK_SIZE);
    f->disk = open_disk(f, false);
    *state = f;
    return 0;
}

/* A disk of the same size in a qcow2 image. */
static int setup_qcow2(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct image_create create = {.format = DISK_FORMAT_QCOW2,
                                  .qcow2 = {DISK_SIZE, 3, 4096, 16, false, NULL, NULL}};
    struct image_new made;
    make_file(f, 0);
    unlink(f->path);
    if (image_create_begin(&made, f->path, &create, NULL) || image_create_finish(&made, NULL))
        return -1;
    f->format = DISK_FORMAT_QCOW2;
    f->disk = open_disk(f, false);
    *state = f;
    return 0;
}

static int setup_threads(void **state)
{
    return setup(state, false);
}

static int setup_uring(void **state)
{
    return setup(state, true);
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    disk_close(f->disk);
    unlink(f->path);
    free(f);
    return 0;
}

/* Skips a test of the io_uring path where the host has none. */
static struct fixture *fixture_of(void **state)
{
    struct fixture *f = *state;
    struct disk_info info;
    disk_info(f->disk, &info);
    if (f->uring && strcmp(info.io_name, "io_uring") != 0)
        skip();
    assert_string_equal(info.format_name, f->format == DISK_FORMAT_QCOW2 ? "qcow2" : "raw");
    assert_string_equal(info.io_name, f->uring ? "io_uring" : "threads");
    return f;
}

static void on_done(struct disk_request *request, int result)
{
    *(int *)request->context = result;
}

static int run(struct disk *disk, struct disk_request *request)
{
    int result = 12345;
    request->done = on_done;
    request->context = &result;
    disk_submit(disk, request);
    disk_drain(disk);
    assert_int_not_equal(result, 12345);
    return result;
}

static int transfer(struct disk *disk, enum disk_op op, uint64_t offset, void *data, size_t size)
{
    /* Two pieces, so that the vectors matter. */
    struct iovec iov[2] = {{data, size / 2}, {(char *)data + size / 2, size - size / 2}};
    struct disk_request request = {
        .op = op, .offset = offset, .length = size, .iov = iov, .iov_count = 2};
    return run(disk, &request);
}

static int span(struct disk *disk, enum disk_op op, uint64_t offset, uint64_t length, bool unmap)
{
    struct disk_request request = {.op = op, .offset = offset, .length = length, .unmap = unmap};
    return run(disk, &request);
}

static void fill(uint8_t *data, size_t size, unsigned seed)
{
    for (size_t i = 0; i < size; i++)
        data[i] = (uint8_t)(i * 7 + i / 512 + seed) | 1;
}

static void test_data_comes_back(void **state)
{
    struct fixture *f = fixture_of(state);
    uint8_t out[8192], in[8192];
    fill(out, sizeof out, 1);
    assert_int_equal(transfer(f->disk, DISK_WRITE, 512, out, sizeof out), 0);
    assert_int_equal(span(f->disk, DISK_FLUSH, 0, 0, false), 0);
    memset(in, 0xee, sizeof in);
    assert_int_equal(transfer(f->disk, DISK_READ, 512, in, sizeof in), 0);
    assert_memory_equal(out, in, sizeof in);
    if (f->format == DISK_FORMAT_QCOW2)
        return;
    int fd = open(f->path, O_RDONLY);
    assert_int_equal(pread(fd, in, sizeof in, 512), sizeof in);
    close(fd);
    assert_memory_equal(out, in, sizeof in);
}

static void test_discard_and_zeroes(void **state)
{
    struct fixture *f = fixture_of(state);
    static uint8_t data[65536], zero[65536];
    static const struct {
        enum disk_op op;
        bool unmap;
    } cases[] = {{DISK_DISCARD, false}, {DISK_WRITE_ZEROES, false}, {DISK_WRITE_ZEROES, true}};
    struct disk_info info;
    disk_info(f->disk, &info);
    for (size_t i = info.can_discard ? 0 : 1; i < ARRAY_COUNT(cases); i++) {
        fill(data, sizeof data, (unsigned)i);
        assert_int_equal(transfer(f->disk, DISK_WRITE, 0, data, sizeof data), 0);
        assert_int_equal(span(f->disk, cases[i].op, 4096, 32768, cases[i].unmap), 0);
        assert_int_equal(transfer(f->disk, DISK_READ, 0, data, sizeof data), 0);
        assert_memory_equal(data + 4096, zero, 32768);
        assert_int_not_equal(data[4095], 0);
    }
}

static void test_bad_ranges_are_refused(void **state)
{
    struct fixture *f = fixture_of(state);
    uint8_t data[1024];
    assert_int_equal(transfer(f->disk, DISK_READ, DISK_SIZE, data, 512), -EINVAL);
    assert_int_equal(transfer(f->disk, DISK_READ, DISK_SIZE - 512, data, 1024), -EINVAL);
    assert_int_equal(transfer(f->disk, DISK_READ, 1, data, 512), -EINVAL);
    assert_int_equal(transfer(f->disk, DISK_WRITE, 0, data, 100), -EINVAL);
    assert_int_equal(span(f->disk, DISK_DISCARD, UINT64_MAX - 511, 1024, false), -EINVAL);
    assert_int_equal(span(f->disk, (enum disk_op)17, 0, 512, false), -EINVAL);
    struct iovec iov = {data, 1024};
    struct disk_request longer = {.op = DISK_READ, .length = 512, .iov = &iov, .iov_count = 1};
    assert_int_equal(run(f->disk, &longer), -EINVAL);
}

static void test_cut_file_reads_as_zero(void **state)
{
    struct fixture *f = fixture_of(state);
    uint8_t data[2048];
    fill(data, sizeof data, 3);
    assert_int_equal(transfer(f->disk, DISK_WRITE, 0, data, sizeof data), 0);
    assert_int_equal(truncate(f->path, 700), 0);
    memset(data, 0xee, sizeof data);
    assert_int_equal(transfer(f->disk, DISK_READ, 0, data, sizeof data), 0);
    assert_int_not_equal(data[699], 0xee);
    for (size_t i = 700; i < sizeof data; i++)
        assert_int_equal(data[i], 0);
}

static void test_file_size_limit_is_an_io_error(void **state)
{
    struct fixture *f = fixture_of(state);
    uint8_t data[4096] = {1};
    assert_int_equal(truncate(f->path, 512), 0);
    struct rlimit old, small;
    getrlimit(RLIMIT_FSIZE, &old);
    small = (struct rlimit) {65536, old.rlim_max};
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    int below = transfer(f->disk, DISK_WRITE, 0, data, sizeof data);
    int above = transfer(f->disk, DISK_WRITE, 65536, data, sizeof data);
    setrlimit(RLIMIT_FSIZE, &old);
    signal(SIGXFSZ, handler);
    assert_int_equal(below, 0);
    assert_int_equal(above, -EFBIG);
    assert_int_equal(transfer(f->disk, DISK_WRITE, 65536, data, sizeof data), 0);
}

/* Runs in a child of its own mount namespace. 0: as it should be; 77: not allowed here. */
static int full_disk_child(const char *path, bool uring)
{
    char directory[96], file[128];
    snprintf(directory, sizeof directory, "%s.d", path);
    snprintf(file, sizeof file, "%s/disk", directory);
    if (mkdir(directory, 0700) < 0 || unshare(CLONE_NEWNS) < 0 ||
        mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("tmpfs", directory, "tmpfs", 0, "size=64k") < 0)
        return 77;
    int fd = open(file, O_CREAT | O_RDWR, 0600);
    if (fd < 0 || ftruncate(fd, DISK_SIZE) < 0)
        return 1;
    struct disk_config config = {.path = file, .use_io_uring = uring, .queue_count = 1};
    struct disk *disk;
    if (disk_open(&disk, &config, NULL))
        return 2;
    static uint8_t data[131072];
    memset(data, 1, sizeof data);
    if (transfer(disk, DISK_WRITE, 0, data, sizeof data) != -ENOSPC)
        return 3;
    if (transfer(disk, DISK_READ, 0, data, 4096) != 0)
        return 4;
    disk_close(disk);
    return 0;
}

static int in_child(int (*body)(const char *path, bool uring), const struct fixture *f)
{
    pid_t pid = fork();
    if (pid == 0)
        _exit(body(f->path, f->uring));
    int status = -1;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void test_full_host_disk_is_an_io_error(void **state)
{
    struct fixture *f = fixture_of(state);
    disk_close(f->disk); /* no thread may be there when the process forks */
    f->disk = NULL;
    int status = in_child(full_disk_child, f);
    char directory[96];
    snprintf(directory, sizeof directory, "%s.d", f->path);
    rmdir(directory);
    if (status == 77)
        skip();
    assert_int_equal(status, 0);
}

struct many {
    struct disk_request request;
    struct iovec iov;
    uint8_t data[4096];
    int result;
};

#define MANY 600 /* more than the ring takes at a time */

static void test_many_requests_at_once(void **state)
{
    struct fixture *f = fixture_of(state);
    struct many *m = calloc(MANY, sizeof *m);
    for (unsigned pass = 0; pass < 2; pass++) {
        for (unsigned i = 0; i < MANY; i++) {
            if (pass == 0)
                memset(m[i].data, (int)(i % 251 + 1), sizeof m[i].data);
            m[i].iov = (struct iovec) {m[i].data, 4096};
            m[i].result = 1;
            m[i].request = (struct disk_request) {.op = pass == 0 ? DISK_WRITE : DISK_READ,
                                                  .offset = i % 250 * 4096ull,
                                                  .length = 4096,
                                                  .iov = &m[i].iov,
                                                  .iov_count = 1,
                                                  .done = on_done,
                                                  .context = &m[i].result};
            disk_submit(f->disk, &m[i].request);
        }
        disk_drain(f->disk);
        for (unsigned i = 0; i < MANY; i++)
            assert_int_equal(m[i].result, 0);
    }
    for (unsigned i = 0; i < MANY; i++) { /* no torn pages */
        assert_int_not_equal(m[i].data[0], 0);
        assert_memory_equal(m[i].data, m[i].data + 1, 4095);
    }
    free(m);
}

static void test_direct_takes_any_alignment(void **state)
{
    struct fixture *f = fixture_of(state);
    disk_close(f->disk);
    f->disk = NULL;
    struct disk_config config = {.path = f->path,
                                 .format = f->format,
                                 .direct = true,
                                 .use_io_uring = f->uring,
                                 .queue_count = 1};
    int error = disk_open(&f->disk, &config, NULL);
    if (error == -EINVAL)
        skip(); /* this file system has no direct I/O */
    assert_int_equal(error, 0);
    uint8_t *page = NULL;
    assert_int_equal(posix_memalign((void **)&page, 4096, 16384), 0);
    uint8_t in[8192];
    fill(page, 8192, 5);
    assert_int_equal(transfer(f->disk, DISK_WRITE, 8192, page, 8192), 0);
    assert_int_equal(transfer(f->disk, DISK_WRITE, 8192 + 512, page + 3, 1024), 0);
    memmove(page + 512, page + 3, 1024);
    assert_int_equal(transfer(f->disk, DISK_READ, 8192, in, 8192), 0);
    assert_memory_equal(in, page, 512 + 1024);
    assert_int_equal(transfer(f->disk, DISK_READ, 8192, page + 8192, 8192), 0);
    assert_memory_equal(in, page + 8192, 8192);
    free(page);
}

static void assert_refused(const char *path, bool read_only, int error, const char *words)
{
    struct disk_config config = {.path = path, .read_only = read_only, .queue_count = 1};
    struct disk *disk = NULL;
    struct err err = {{0}};
    assert_int_equal(disk_open(&disk, &config, &err), -error);
    assert_null(disk);
    if (!strstr(err.text, path) || !strstr(err.text, words))
        fail_msg("bad sentence: %s", err.text);
}

static void test_bad_files_are_refused_by_name(void **state)
{
    assert_refused("/nonexistent/disk", false, ENOENT, "no such file");
    assert_refused("/tmp", false, EISDIR, "directory");
    assert_refused("/tmp", true, EISDIR, "directory");
    assert_refused("/dev/null", false, EINVAL, "neither a file nor a block device");
    struct fixture f = {0};
    make_file(&f, 0);
    assert_refused(f.path, false, EINVAL, "empty");
    unlink(f.path);
    assert_int_equal(mkfifo(f.path, 0600), 0);
    assert_refused(f.path, true, EINVAL, "neither");
    unlink(f.path);
    make_file(&f, 512);
    chmod(f.path, 0400);
    if (geteuid() != 0)
        assert_refused(f.path, false, EACCES, "not writable");
    unlink(f.path);
}

static void test_locks_keep_writers_apart(void **state)
{
    struct fixture *f = *state;
    assert_refused(f->path, false, EBUSY, "in use writable");
    assert_refused(f->path, true, EBUSY, "in use writable");
    disk_close(f->disk);
    f->disk = NULL;
    struct disk_config config = {.path = f->path, .read_only = true, .queue_count = 1};
    struct disk *second;
    assert_int_equal(disk_open(&f->disk, &config, NULL), 0);
    assert_int_equal(disk_open(&second, &config, NULL), 0);
    assert_refused(f->path, false, EBUSY, "in use read-only");
    uint8_t data[512] = {0};
    assert_int_equal(transfer(second, DISK_WRITE, 0, data, 512), -EROFS);
    assert_int_equal(transfer(second, DISK_READ, 0, data, 512), 0);
    disk_close(second);
}

static void test_odd_size_is_rounded_up(void **state)
{
    struct fixture f = {0};
    make_file(&f, 1000);
    struct disk *disk = open_disk(&f, false);
    struct disk_info info;
    disk_info(disk, &info);
    assert_int_equal(info.size, 1024);
    uint8_t data[512];
    memset(data, 0xee, sizeof data);
    assert_int_equal(transfer(disk, DISK_READ, 512, data, 512), 0);
    assert_int_equal(data[511], 0);
    disk_close(disk);
    unlink(f.path);
}

static int denied_uring_child(const char *path, bool uring)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = ARRAY_COUNT(code), .filter = code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, 2, &program))
        return 77;
    struct fixture f = {.uring = true};
    make_file(&f, 4096);
    struct disk *disk = open_disk(&f, false);
    struct disk_info info;
    disk_info(disk, &info);
    uint8_t data[512] = {0};
    int result = transfer(disk, DISK_WRITE, 0, data, 512);
    disk_close(disk);
    unlink(f.path);
    return result == 0 && strcmp(info.io_name, "threads") == 0 ? 0 : 1;
}

static void test_denied_io_uring_falls_back(void **state)
{
    struct fixture f = {0};
    int status = in_child(denied_uring_child, &f);
    if (status == 77)
        skip();
    assert_int_equal(status, 0);
}

#define BOTH(test)                                                                                 \
    {#test " (threads)", test, setup_threads, teardown, NULL},                                     \
    {                                                                                              \
#test " (io_uring)", test, setup_uring, teardown, NULL                                     \
    }

/* What was not flushed by the guest is there when the disk was closed. */
static void test_closing_writes_the_tables(void **state)
{
    struct fixture *f = fixture_of(state);
    uint8_t out[8192], in[8192];
    fill(out, sizeof out, 9);
    assert_int_equal(transfer(f->disk, DISK_WRITE, 65536, out, sizeof out), 0);
    disk_close(f->disk);
    f->disk = open_disk(f, true);
    struct disk_info info;
    disk_info(f->disk, &info);
    assert_int_equal(info.size, DISK_SIZE);
    assert_int_equal(info.discard_granularity, 4096);
    assert_int_equal(transfer(f->disk, DISK_READ, 65536, in, sizeof in), 0);
    assert_memory_equal(out, in, sizeof in);
}

#define QCOW2(test)                                                                                \
    {                                                                                              \
#test " (qcow2)", test, setup_qcow2, teardown, NULL                                        \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        BOTH(test_data_comes_back),
        BOTH(test_discard_and_zeroes),
        BOTH(test_bad_ranges_are_refused),
        BOTH(test_cut_file_reads_as_zero),
        BOTH(test_file_size_limit_is_an_io_error),
        BOTH(test_full_host_disk_is_an_io_error),
        BOTH(test_many_requests_at_once),
        BOTH(test_direct_takes_any_alignment),
        QCOW2(test_data_comes_back),
        QCOW2(test_discard_and_zeroes),
        QCOW2(test_bad_ranges_are_refused),
        QCOW2(test_many_requests_at_once),
        QCOW2(test_direct_takes_any_alignment),
        QCOW2(test_closing_writes_the_tables),
        cmocka_unit_test(test_bad_files_are_refused_by_name),
        cmocka_unit_test_setup_teardown(test_locks_keep_writers_apart, setup_threads, teardown),
        cmocka_unit_test(test_odd_size_is_rounded_up),
        cmocka_unit_test(test_denied_io_uring_falls_back),
    };
    return cmocka_run_group_tests_name("disk", tests, NULL, NULL);
}
