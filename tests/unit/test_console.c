/* backend/console: bytes both ways, back-pressure, the keys behind Ctrl-], the terminal's mode. */
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/console/console.h"
#include "base/loop.h"

struct fixture {
    struct loop *loop;
    struct console *console;
    struct console_terminal terminal;
    int master, slave; /* the test's pty, as standard input and output of stdio */
    int old_in, old_out;
    uint8_t input[4096];
    size_t length, room;
    int can_write_calls, quit_calls;
};

static size_t on_input(void *context, const uint8_t *data, size_t length)
{
    struct fixture *f = context;
    size_t taken = MIN(length, f->room);
    memcpy(f->input + f->length, data, taken);
    f->length += taken;
    f->room -= taken;
    return taken;
}

static void on_can_write(void *context)
{
    ((struct fixture *)context)->can_write_calls++;
}

static void on_quit(void *context)
{
    ((struct fixture *)context)->quit_calls++;
}

static void turn(struct fixture *f)
{
    for (int i = 0; i < 8; i++)
        assert_int_equal(loop_run_once(f->loop, 0), 0);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->room = sizeof f->input;
    f->master = f->slave = f->old_in = f->old_out = -1;
    *state = f;
    return loop_create(&f->loop);
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    console_close(f->console);
    if (f->old_in >= 0) {
        dup2(f->old_in, 0);
        close(f->old_in);
    }
    if (f->old_out >= 0) {
        dup2(f->old_out, 1);
        close(f->old_out);
    }
    if (f->master >= 0)
        close(f->master);
    if (f->slave >= 0)
        close(f->slave);
    loop_destroy(f->loop);
    free(f);
    return 0;
}

static void open_console(struct fixture *f, enum console_kind kind, const char *path)
{
    struct console_config config = {.kind = kind,
                                    .path = path,
                                    .loop = f->loop,
                                    .terminal = &f->terminal,
                                    .quit = on_quit,
                                    .quit_context = f};
    struct err err;
    if (console_open(&f->console, &config, &err))
        fail_msg("%s", err.text);
    struct console_client client = {on_input, on_can_write, f};
    console_attach(f->console, &client);
}

static void close_console(struct fixture *f)
{
    console_close(f->console);
    f->console = NULL;
}

/* A terminal's bytes travel in the kernel's own time. */
#define wait_until(f, condition)                                                                   \
    do {                                                                                           \
        for (int tries = 0; tries < 200 && !(condition); tries++)                                  \
            assert_int_equal(loop_run_once((f)->loop, 20), 0);                                     \
        assert_true(condition);                                                                    \
    } while (0)

static void write_all(int fd, const char *text)
{
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
}

static int wait_readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, 5000);
}

/* Makes a pty the process's standard input and output. */
static void use_terminal(struct fixture *f)
{
    char path[64];
    f->master = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK);
    assert_true(f->master >= 0);
    assert_int_equal(grantpt(f->master) | unlockpt(f->master), 0);
    assert_int_equal(ptsname_r(f->master, path, sizeof path), 0);
    f->slave = open(path, O_RDWR | O_NOCTTY);
    assert_true(f->slave >= 0);
    fflush(stdout);
    f->old_in = dup(0);
    f->old_out = dup(1);
    dup2(f->slave, 0);
    dup2(f->slave, 1);
}

static void use_pipe_as_input(struct fixture *f)
{
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    f->old_in = dup(0);
    dup2(fds[0], 0);
    close(fds[0]);
    f->master = fds[1];
    int null = open("/dev/null", O_WRONLY);
    fflush(stdout);
    f->old_out = dup(1);
    dup2(null, 1);
    close(null);
}

static void test_terminal_goes_raw_and_back(void **state)
{
    struct fixture *f = *state;
    use_terminal(f);
    struct termios before = {0}, raw = {0}, after = {0};
    tcgetattr(f->slave, &before);
    open_console(f, CONSOLE_STDIO, NULL);
    tcgetattr(f->slave, &raw);
    assert_false(raw.c_lflag & (ECHO | ICANON | ISIG));
    console_terminal_restore(&f->terminal);
    tcgetattr(f->slave, &after);
    assert_memory_equal(&before, &after, sizeof before);
    console_terminal_raw(&f->terminal); /* as after SIGCONT */
    tcgetattr(f->slave, &after);
    assert_false(after.c_lflag & ICANON);
    close_console(f);
    tcgetattr(f->slave, &after);
    assert_memory_equal(&before, &after, sizeof before);
}

static void test_escape_keys(void **state)
{
    struct fixture *f = *state;
    use_terminal(f);
    open_console(f, CONSOLE_STDIO, NULL);
    write_all(f->master, "a\003\035\035b\035xc\035");
    wait_until(f, f->length == 5);
    write_all(f->master, "q");
    wait_until(f, f->quit_calls == 1);
    turn(f);
    char shown[256] = {0};
    assert_int_equal(wait_readable(f->master), 1);
    assert_true(read(f->master, shown, sizeof shown - 1) > 0);
    assert_non_null(strstr(shown, "Ctrl-] q quits"));
    assert_memory_equal(f->input, "a\003\035bc", 5);
}

static void test_quit_works_while_guest_takes_nothing(void **state)
{
    struct fixture *f = *state;
    use_terminal(f);
    f->room = 0;
    open_console(f, CONSOLE_STDIO, NULL);
    for (int i = 0; i < 64; i++) {
        char typed[100];
        memset(typed, 'x', sizeof typed - 1);
        typed[sizeof typed - 1] = 0;
        write_all(f->master, typed);
        turn(f);
    }
    write_all(f->master, "\035q");
    wait_until(f, f->quit_calls == 1);
    f->room = 100;
    console_kick_input(f->console);
    wait_until(f, f->length == 100);
}

static void test_pipe_input_waits_for_guest_and_ends(void **state)
{
    struct fixture *f = *state;
    use_pipe_as_input(f);
    f->room = 3;
    open_console(f, CONSOLE_STDIO, NULL);
    write_all(f->master, "hello\035q");
    turn(f);
    assert_int_equal(f->length, 3);
    close(f->master);
    f->master = -1;
    f->room = 100;
    console_kick_input(f->console);
    turn(f);
    assert_int_equal(f->length, 7); /* no escape keys in a pipe */
    assert_memory_equal(f->input, "hello\035q", 7);
    assert_int_equal(f->quit_calls, 0);
}

static void test_file_as_input(void **state)
{
    struct fixture *f = *state;
    use_pipe_as_input(f);
    FILE *file = tmpfile();
    fputs("from a file", file);
    rewind(file);
    dup2(fileno(file), 0);
    open_console(f, CONSOLE_STDIO, NULL);
    turn(f);
    assert_int_equal(f->length, 11);
    assert_memory_equal(f->input, "from a file", 11);
    fclose(file);
}

static void test_slow_reader_holds_writer_up(void **state)
{
    struct fixture *f = *state;
    use_terminal(f);
    open_console(f, CONSOLE_STDIO, NULL);
    uint8_t data[1000];
    memset(data, '.', sizeof data);
    size_t written = 0, taken;
    do {
        written += taken = console_write(f->console, data, sizeof data);
        turn(f);
        assert_true(written < (1u << 20)); /* bounded */
    } while (taken == sizeof data);
    assert_int_equal(f->can_write_calls, 0);
    size_t seen = 0;
    while (seen < written && wait_readable(f->master)) {
        char buffer[4096];
        ssize_t length = read(f->master, buffer, sizeof buffer);
        seen += length > 0 ? (size_t)length : 0;
        turn(f);
    }
    assert_int_equal(seen, written);
    assert_int_equal(f->can_write_calls, 1);
}

static void test_file_gets_all_output(void **state)
{
    struct fixture *f = *state;
    char path[] = "/tmp/parat-test-console-XXXXXX";
    close(mkstemp(path));
    open_console(f, CONSOLE_FILE, path);
    uint8_t data[3000];
    memset(data, 'z', sizeof data);
    assert_int_equal(console_write(f->console, data, sizeof data), sizeof data);
    close_console(f); /* drains */
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, sizeof data);
    unlink(path);
}

static void test_bad_file_is_refused_by_name(void **state)
{
    struct fixture *f = *state;
    struct console_config config = {
        .kind = CONSOLE_FILE, .path = "/nonexistent/x", .loop = f->loop};
    struct err err;
    assert_int_equal(console_open(&f->console, &config, &err), -ENOENT);
    assert_non_null(strstr(err.text, "--console file=/nonexistent/x"));
}

static void test_none_swallows(void **state)
{
    struct fixture *f = *state;
    open_console(f, CONSOLE_NONE, NULL);
    assert_int_equal(console_write(f->console, (const uint8_t *)"x", 1), 1);
    turn(f);
}

static void test_pty_keeps_newest_output_for_who_comes(void **state)
{
    struct fixture *f = *state;
    open_console(f, CONSOLE_PTY, NULL);
    turn(f);
    uint8_t data[4096];
    memset(data, 'o', sizeof data);
    for (int i = 0; i < 40; i++) { /* more than the buffer: nobody is held up */
        assert_int_equal(console_write(f->console, data, sizeof data), sizeof data);
        turn(f);
    }
    assert_int_equal(console_write(f->console, (const uint8_t *)"END", 3), 3);
    turn(f);
    f->slave = open(console_path(f->console), O_RDWR | O_NOCTTY | O_NONBLOCK);
    assert_true(f->slave >= 0);
    write_all(f->slave, "hi");
    wait_until(f, f->length == 2); /* the pty was found open */
    char last[3] = {0};
    while (memcmp(last, "END", 3) != 0) {
        char buffer[4096];
        turn(f);
        assert_int_equal(wait_readable(f->slave), 1);
        ssize_t length = read(f->slave, buffer, sizeof buffer);
        for (ssize_t i = 0; i < length; i++) {
            memmove(last, last + 1, 2);
            last[2] = buffer[i];
        }
    }
    close(f->slave);
    f->slave = -1;
    turn(f);
    f->slave = open(console_path(f->console), O_RDWR | O_NOCTTY | O_NONBLOCK);
    write_all(f->slave, "again");
    wait_until(f, f->length == 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_terminal_goes_raw_and_back, setup, teardown),
        cmocka_unit_test_setup_teardown(test_escape_keys, setup, teardown),
        cmocka_unit_test_setup_teardown(test_quit_works_while_guest_takes_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pipe_input_waits_for_guest_and_ends, setup, teardown),
        cmocka_unit_test_setup_teardown(test_file_as_input, setup, teardown),
        cmocka_unit_test_setup_teardown(test_slow_reader_holds_writer_up, setup, teardown),
        cmocka_unit_test_setup_teardown(test_file_gets_all_output, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_file_is_refused_by_name, setup, teardown),
        cmocka_unit_test_setup_teardown(test_none_swallows, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pty_keeps_newest_output_for_who_comes, setup,
                                        teardown),
    };
    return cmocka_run_group_tests_name("console", tests, NULL, NULL);
}
