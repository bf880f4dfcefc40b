/* cli/options and cli/run_options: what is right arrives, what is wrong is told by its name. */
#include "test.h"

#include <errno.h>
#include <string.h>

#include "cli/exit_status.h"
#include "cli/options.h"
#include "cli/run_options.h"

#define ARGS(...) ((char *[]) {(char *)"--kernel", (char *)"k", ##__VA_ARGS__, NULL})

static struct run_options parse_good(char **args)
{
    struct run_options o;
    struct err err = {{0}};
    bool help;
    if (run_options_parse(&o, args, &help, &err))
        fail_msg("%s", err.text);
    assert_false(help);
    return o;
}

static void test_defaults(void **state)
{
    struct run_options o = parse_good(ARGS());
    assert_string_equal(o.name, "parat");
    assert_string_equal(o.machine, "q35-1");
    assert_string_equal(o.engine, "auto");
    assert_string_equal(o.append, "");
    assert_int_equal(o.cpus, 1);
    assert_int_equal(o.memory, 512u << 20);
    assert_int_equal(o.console.kind, CONSOLE_STDIO);
    assert_false(o.has_debug_exit || o.no_reboot || o.reset_on_triple_fault);
    run_options_free(&o);
}

static void test_both_spellings_and_repeats(void **state)
{
    struct run_options o = parse_good(
        ARGS("--cpus=4", "--memory", "1g", "--initrd", "a", "--initrd=b", "--append=x=y z",
             "--no-reboot", "--on-triple-fault", "reset", "--debug-exit", "0xf4", "--console",
             "file=/tmp/a=b", "--name", "vm-1", "--stats=s"));
    assert_int_equal(o.cpus, 4);
    assert_int_equal(o.memory, 1u << 30);
    assert_int_equal(o.initrd_count, 2);
    assert_string_equal(o.initrds[1], "b");
    assert_string_equal(o.append, "x=y z");
    assert_true(o.no_reboot && o.reset_on_triple_fault && o.has_debug_exit);
    assert_int_equal(o.debug_exit_port, 0xf4);
    assert_int_equal(o.console.kind, CONSOLE_FILE);
    assert_string_equal(o.console.path, "/tmp/a=b");
    assert_string_equal(o.name, "vm-1");
    run_options_free(&o);
}

static void test_engine_options(void **state)
{
    struct run_options o = parse_good(ARGS("--engine", "soft,mode=lockstep,code-cache=2M"));
    assert_string_equal(o.engine, "soft");
    assert_true(o.has_code);
    assert_int_equal(o.code.mode, ENGINE_CODE_LOCKSTEP);
    assert_int_equal(o.code.cache_size, 2u << 20);
    run_options_free(&o);
    o = parse_good(ARGS("--engine=auto,mode=interpret"));
    assert_string_equal(o.engine, "auto");
    assert_int_equal(o.code.mode, ENGINE_CODE_INTERPRET);
    run_options_free(&o);
    o = parse_good(ARGS("--engine", "soft"));
    assert_false(o.has_code);
    assert_int_equal(o.code.mode, ENGINE_CODE_TRANSLATE);
    run_options_free(&o);
}

static int parse_letter(void *target, const char *value, struct err *err)
{
    *(const char **)target = value;
    return 0;
}

/* As `parat disk` takes them: words anywhere, options of one letter. */
static void test_words_and_letters(void **state)
{
    static const struct option list[] = {{"O", "FORMAT", "a letter", false, parse_letter},
                                         {"long", NULL, "a flag", false, parse_letter}};
    const char *words[2] = {NULL, NULL}, *letter = "";
    const struct options options = {list, ARRAY_COUNT(list), words, 2};
    char *good[] = {(char *)"in", (char *)"-O", (char *)"raw", (char *)"-5G", NULL};
    char *many[] = {(char *)"a", (char *)"b", (char *)"c", NULL};
    char *unknown[] = {(char *)"-x", NULL}, *wrong[] = {(char *)"--O", (char *)"raw", NULL};
    char *bare[] = {(char *)"-O", NULL};
    struct err err = {{0}};
    bool help;
    assert_int_equal(options_parse(&options, good, &letter, &help, &err), 0);
    assert_string_equal(words[0], "in");
    assert_string_equal(words[1], "-5G");
    assert_string_equal(letter, "raw");
    assert_int_equal(options_parse(&options, many, &letter, &help, &err), -EINVAL);
    assert_string_equal(err.text, "c: is one argument too many");
    assert_int_equal(options_parse(&options, unknown, &letter, &help, &err), -EINVAL);
    assert_string_equal(err.text, "-x: there is no such option");
    assert_int_equal(options_parse(&options, wrong, &letter, &help, &err), -EINVAL);
    assert_int_equal(options_parse(&options, bare, &letter, &help, &err), -EINVAL);
    assert_string_equal(err.text, "-O: needs a value (FORMAT)");
}

static void test_disks(void **state)
{
    struct run_options o =
        parse_good(ARGS("--disk", "a.img", "--disk=b,,c.img,ro,serial=S 1,direct,io=threads",
                        "--disk=d,format=qcow2", "--disk=e.qcow2,format=raw"));
    assert_int_equal(o.disk_count, 4);
    assert_int_equal(o.disks[0].format, DISK_FORMAT_AUTO);
    assert_int_equal(o.disks[2].format, DISK_FORMAT_QCOW2);
    assert_int_equal(o.disks[3].format, DISK_FORMAT_RAW);
    assert_string_equal(o.disks[0].path, "a.img");
    assert_false(o.disks[0].read_only || o.disks[0].direct || o.disks[0].no_io_uring);
    assert_string_equal(o.disks[1].path, "b,c.img");
    assert_string_equal(o.disks[1].serial, "S 1");
    assert_true(o.disks[1].read_only && o.disks[1].direct && o.disks[1].no_io_uring);
    run_options_free(&o);
}

static void test_nets(void **state)
{
    struct run_options o =
        parse_good(ARGS("--net", "none", "--net",
                        "user,hostfwd=tcp:0.0.0.0:2222-:22,hostfwd=udp::53-:5353,host-loopback=on,"
                        "mac=52:54:00:AB:cd:01"));
    assert_int_equal(o.net_count, 2);
    assert_true(o.nets[0].none);
    const struct run_net *net = &o.nets[1];
    assert_true(net->user.host_loopback && net->has_mac && !net->none);
    assert_int_equal(net->user.forward_count, 2);
    assert_int_equal(net->user.forward[0].host_address, 0);
    assert_int_equal(net->user.forward[0].host_port, 2222);
    assert_int_equal(net->user.forward[0].guest_port, 22);
    assert_int_equal(net->user.forward[1].host_address, 0x7f000001);
    assert_true(net->user.forward[1].udp && !net->user.forward[0].udp);
    assert_memory_equal(net->mac, "\x52\x54\x00\xab\xcd\x01", 6);
    run_options_free(&o);
}

static void test_bad_values_are_told_by_name(void **state)
{
    static const char *const bad[][2] = {
        {"--cpus", "0"},
        {"--cpus", "65"},
        {"--cpus", "-1"},
        {"--cpus", "2x"},
        {"--cpus", ""},
        {"--cpus", "0x"},
        {"--cpus", "99999999999999999999999"},
        {"--memory", "0"},
        {"--memory", "512"},
        {"--memory", "1025K "},
        {"--memory", "1M1"},
        {"--memory", "1.5G"},
        {"--memory", "-1M"},
        {"--memory", "1048577"},
        {"--memory", "512Q"},
        {"--memory", "60000G"},
        {"--memory", "99999999999999999999G"},
        {"--memory", "17179869184G"},
        {"--machine", "pc"},
        {"--engine", ""},
        {"--engine", ",mode=translate"},
        {"--engine", "a-name-that-no-engine-will-ever-have"},
        {"--engine", "soft,"},
        {"--engine", "soft,mode=fast"},
        {"--engine", "soft,mode="},
        {"--engine", "soft,mode"},
        {"--engine", "soft,cache=2M"},
        {"--engine", "soft,code-cache=1023K"},
        {"--engine", "soft,code-cache=2G"},
        {"--engine", "soft,code-cache=1048577"},
        {"--cpu", "v9"},
        {"--name", ""},
        {"--name", "a b"},
        {"--name", "a/b"},
        {"--kernel", ""},
        {"--initrd", ""},
        {"--disk", ""},
        {"--disk", ",ro"},
        {"--disk", "x,rw"},
        {"--disk", "x,serial="},
        {"--disk", "x,serial=123456789012345678901"},
        {"--disk", "x,serial=\t"},
        {"--disk", "x,io=magic"},
        {"--disk", "x,"},
        {"--net", "tap"},
        {"--net", ""},
        {"--net", "user,foo"},
        {"--net", "user,hostfwd=nosuch"},
        {"--net", "user,hostfwd=tcp"},
        {"--net", "user,hostfwd=tcp:127.0.0.1"},
        {"--net", "user,hostfwd=tcp:127.0.0.1:99999-:7"},
        {"--net", "user,hostfwd=tcp:127.0.0.1:0-:7"},
        {"--net", "user,hostfwd=tcp:127.0.0.1:7-:"},
        {"--net", "user,hostfwd=tcp:127.0.0.1:7-7"},
        {"--net", "user,hostfwd=tcp:300.0.0.1:7-:7"},
        {"--net", "user,hostfwd=sctp::7-:7"},
        {"--net", "user,host-loopback=yes"},
        {"--net", "user,mac=12:34"},
        {"--net", "user,mac=01:00:00:00:00:00"},
        {"--net", "user,mac=00:00:00:00:00:00"},
        {"--net", "user,mac=52:54:00:12:34:56:78"},
        {"--net", "user,mac=52:54:00:12:34:+6"},
        {"--net", "none,hostfwd=tcp::1-:1"},
        {"--console", "tty"},
        {"--virtio-console", "hvc0"},
        {"--console", "file="},
        {"--on-triple-fault", "die"},
        {"--debug-exit", "0x10000"},
        {"--debug-exit", "port"},
        {"--stats", ""},
    };
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        struct run_options o;
        struct err err = {{0}};
        bool help;
        char *args[] = {(char *)bad[i][0], (char *)bad[i][1], NULL};
        if (run_options_parse(&o, args, &help, &err) != -EINVAL)
            fail_msg("%s '%s' was taken", bad[i][0], bad[i][1]);
        if (strncmp(err.text, bad[i][0], strlen(bad[i][0])) != 0 || !strstr(err.text, bad[i][1]) ||
            strchr(err.text, '\n') || strlen(err.text) < strlen(bad[i][0]) + strlen(bad[i][1]) + 8)
            fail_msg("no good sentence about %s '%s': %s", bad[i][0], bad[i][1], err.text);
        run_options_free(&o);
    }
}

static void assert_refused(char **args, const char *words)
{
    struct run_options o;
    struct err err = {{0}};
    bool help;
    assert_int_equal(run_options_parse(&o, args, &help, &err), -EINVAL);
    if (!strstr(err.text, words))
        fail_msg("'%s' has no '%s'", err.text, words);
    run_options_free(&o);
}

static void test_bad_use_is_told_by_name(void **state)
{
    assert_refused(ARGS("--virtio-console", "stdio"), "--virtio-console stdio: ");
    assert_refused(ARGS("stray"), "stray");
    assert_refused(ARGS("-x"), "-x");
    assert_refused(ARGS("--"), "--");
    assert_refused(ARGS("--nosuch=1"), "--nosuch: ");
    assert_refused(ARGS("--cpu"), "--cpu: needs a value");
    assert_refused(ARGS("--cpus", "1", "--cpus", "1"), "--cpus: is given twice");
    assert_refused(ARGS("--no-reboot=1"), "--no-reboot: takes no value");
    assert_refused((char *[]) {(char *)"--cpus", (char *)"1", NULL}, "--kernel");
}

static void test_too_many_are_refused(void **state)
{
    char *args[2 * (RUN_INITRDS_MAX + 1) + 1] = {NULL};
    static const char *const names[] = {"--initrd", "--disk", "--net"};
    for (size_t n = 0; n < ARRAY_COUNT(names); n++) {
        for (size_t i = 0; i < RUN_INITRDS_MAX + 1; i++) {
            args[2 * i] = (char *)names[n];
            args[2 * i + 1] = (char *)(n == 2 ? "user" : "x");
        }
        assert_refused(args, "at most");
    }
}

static void test_help_wins(void **state)
{
    struct run_options o;
    bool help = false;
    assert_int_equal(run_options_parse(&o, (char *[]) {(char *)"--help", NULL}, &help, NULL), 0);
    assert_true(help);
    run_options_free(&o);
}

static void test_sizes(void **state)
{
    uint64_t v;
    assert_true(options_parse_size("4096", &v) && v == 4096);
    assert_true(options_parse_size("0x10k", &v) && v == 16384);
    assert_true(options_parse_size("3T", &v) && v == 3ull << 40);
    assert_true(options_parse_size("18446744073709551615", &v) && v == UINT64_MAX);
    assert_false(options_parse_size("18446744073709551616", &v));
    assert_false(options_parse_size("16777216T", &v));
    assert_false(options_parse_size("", &v));
    assert_false(options_parse_size("K", &v));
    assert_false(options_parse_size("1KB", &v));
}

static void test_exit_statuses(void **state)
{
    assert_int_equal(run_exit_status(MACHINE_END_POWEROFF, false, 0), 0);
    assert_int_equal(run_exit_status(MACHINE_END_USER, true, 0), 0);
    assert_int_equal(run_exit_status(MACHINE_END_RESET, false, 0), 0);
    assert_int_equal(run_exit_status(MACHINE_END_HOST_ERROR, false, 0), 1);
    assert_int_equal(run_exit_status(MACHINE_END_HOST_ERROR, true, 0), 2);
    assert_int_equal(run_exit_status(MACHINE_END_TRIPLE_FAULT, false, 0), 3);
    assert_int_equal(run_exit_status(MACHINE_END_TRIPLE_FAULT, true, 0), 4);
    assert_int_equal(run_exit_status(MACHINE_END_DEBUG_EXIT, true, 0), 1);
    assert_int_equal(run_exit_status(MACHINE_END_DEBUG_EXIT, true, 0x10), 0x21);
    assert_int_equal(run_exit_status(MACHINE_END_DEBUG_EXIT, true, 0xffffffff), 0xff);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_both_spellings_and_repeats),
        cmocka_unit_test(test_engine_options),
        cmocka_unit_test(test_words_and_letters),
        cmocka_unit_test(test_disks),
        cmocka_unit_test(test_nets),
        cmocka_unit_test(test_bad_values_are_told_by_name),
        cmocka_unit_test(test_bad_use_is_told_by_name),
        cmocka_unit_test(test_too_many_are_refused),
        cmocka_unit_test(test_help_wins),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_exit_statuses),
    };
    return cmocka_run_group_tests_name("options", tests, NULL, NULL);
}
