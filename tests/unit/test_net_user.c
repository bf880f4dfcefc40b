/*
 * backend/net: frames reach the network of the helper process and come back, the host's loopback
 * stays closed, ports in use are told by name, and the helper's end is noticed. The helper is this
 * very program, as it is in parat.
 */
#include "test.h"

#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backend/net/net.h"
#include "backend/net/net_user_int.h"
#include "base/loop.h"

#define FRAMES_MAX 64

struct fixture {
    struct loop *loop;
    struct net *net;
    bool refuse;
    int links, refused;
    unsigned count;
    size_t length[FRAMES_MAX];
    uint8_t frame[FRAMES_MAX][2048];
};

static const uint8_t guest_mac[6] = {0x52, 0x54, 0, 0x12, 0x34, 0x56};

static bool on_receive(void *context, const uint8_t *frame, size_t length)
{
    struct fixture *f = context;
    if (f->refuse) {
        f->refused++;
        return false;
    }
    assert_true(f->count < FRAMES_MAX && length <= sizeof f->frame[0]);
    memcpy(f->frame[f->count], frame, length);
    f->length[f->count++] = length;
    return true;
}

static void on_link(void *context, bool up)
{
    struct fixture *f = context;
    f->links += up ? 100 : 1;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    *state = f;
    return loop_create(&f->loop);
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    if (f->net)
        f->net->ops->close(f->net);
    loop_destroy(f->loop);
    free(f);
    return 0;
}

static void open_net(struct fixture *f, struct net_user_config config)
{
    struct err err = {{0}};
    config.loop = f->loop;
    if (net_user_open(&f->net, &config, &err))
        fail_msg("%s", err.text);
    f->net->client = (struct net_client) {.receive = on_receive, .link = on_link, .context = f};
    f->net->ops->pause_receive(f->net, false);
}

#define wait_until(f, condition)                                                                   \
    do {                                                                                           \
        for (int tries = 0; tries < 250 && !(condition); tries++)                                  \
            assert_int_equal(loop_run_once((f)->loop, 20), 0);                                     \
        assert_true(condition);                                                                    \
    } while (0)

static void put16(uint8_t *at, unsigned value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static void send_frame(struct fixture *f, uint8_t *frame, size_t length)
{
    struct iovec iov[2] = {{frame, 14}, {frame + 14, length - 14}};
    assert_int_equal(f->net->ops->send(f->net, iov, 2), 0);
}

static void put_ethernet(uint8_t *frame, unsigned type)
{
    memset(frame, 0xff, 6);
    memcpy(frame + 6, guest_mac, 6);
    put16(frame + 12, type);
}

/* RFC 826 */
static void send_arp(struct fixture *f, const char *for_address)
{
    uint8_t frame[60] = {0};
    put_ethernet(frame, 0x0806);
    put16(frame + 14, 1);
    put16(frame + 16, 0x0800);
    frame[18] = 6;
    frame[19] = 4;
    put16(frame + 20, 1);
    memcpy(frame + 22, guest_mac, 6);
    inet_pton(AF_INET, "10.0.2.15", frame + 28);
    inet_pton(AF_INET, for_address, frame + 38);
    send_frame(f, frame, sizeof frame);
}

static unsigned arp_replies(const struct fixture *f)
{
    unsigned count = 0;
    for (unsigned i = 0; i < f->count; i++)
        count += f->length[i] >= 42 && f->frame[i][12] == 8 && f->frame[i][13] == 6 &&
                 f->frame[i][21] == 2;
    return count;
}

/* RFC 791, RFC 768; no UDP checksum. */
static void send_udp(struct fixture *f, const char *to, uint16_t port, const void *data,
                     size_t length)
{
    uint8_t frame[600] = {0};
    assert_true(length <= 500);
    put_ethernet(frame, 0x0800);
    uint8_t *ip = frame + 14, *udp = ip + 20;
    ip[0] = 0x45;
    put16(ip + 2, (unsigned)(28 + length));
    ip[8] = 64;
    ip[9] = 17;
    inet_pton(AF_INET, "10.0.2.15", ip + 12);
    inet_pton(AF_INET, to, ip + 16);
    unsigned sum = 0;
    for (int i = 0; i < 20; i += 2)
        sum += (unsigned)ip[i] << 8 | ip[i + 1];
    put16(ip + 10, ~((sum & 0xffff) + (sum >> 16)));
    put16(udp, port == 67 ? 68 : 4000);
    put16(udp + 2, port);
    put16(udp + 4, (unsigned)(8 + length));
    memcpy(udp + 8, data, length);
    send_frame(f, frame, 14 + 28 + length);
}

static int bound_socket(int type, uint16_t *port)
{
    int fd = socket(AF_INET, type, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof address;
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &length), 0);
    *port = ntohs(address.sin_port);
    return fd;
}

static void test_gateway_answers_arp(void **state)
{
    struct fixture *f = *state;
    open_net(f, (struct net_user_config) {0});
    send_arp(f, "10.0.2.2");
    wait_until(f, f->count == 1);
    assert_int_equal(arp_replies(f), 1);
    assert_memory_equal(f->frame[0] + 28, "\x0a\x00\x02\x02", 4);
}

/* RFC 2131, table 1 */
static void test_dhcp_offers_the_guests_address(void **state)
{
    struct fixture *f = *state;
    open_net(f, (struct net_user_config) {0});
    uint8_t dhcp[300] = {1, 1, 6, 0, 0x12, 0x34, 0x56, 0x78};
    memcpy(dhcp + 28, guest_mac, 6);
    memcpy(dhcp + 236, "\x63\x82\x53\x63\x35\x01\x01\xff", 8); /* DHCPDISCOVER */
    send_udp(f, "255.255.255.255", 67, dhcp, sizeof dhcp);
    wait_until(f, f->count == 1);
    const uint8_t *offer = f->frame[0] + 42;
    assert_true(f->length[0] > 42 + 243);
    assert_int_equal(offer[0], 2);
    assert_memory_equal(offer + 16, "\x0a\x00\x02\x0f", 4);
}

/* Sends a datagram to the address, then waits until the helper has handled it. */
static bool arrives(struct fixture *f, const char *to, int fd, uint16_t port)
{
    send_udp(f, to, port, "ping", 4);
    f->count = 0;
    send_arp(f, "10.0.2.2");
    wait_until(f, arp_replies(f) == 1);
    char data[16];
    return recv(fd, data, sizeof data, MSG_DONTWAIT) == 4;
}

static void test_host_loopback_only_when_asked(void **state)
{
    struct fixture *f = *state;
    uint16_t port;
    int fd = bound_socket(SOCK_DGRAM, &port);
    open_net(f, (struct net_user_config) {0});
    assert_false(arrives(f, "10.0.2.2", fd, port));
    assert_false(arrives(f, "127.0.0.1", fd, port));
    assert_false(arrives(f, "127.1.2.3", fd, port));
    assert_false(arrives(f, "0.0.0.0", fd, port));
    f->net->ops->close(f->net);
    open_net(f, (struct net_user_config) {.host_loopback = true});
    assert_false(arrives(f, "127.0.0.1", fd, port));
    assert_true(arrives(f, "10.0.2.2", fd, port));
    close(fd);
}

static struct net_user_config forward_config(bool udp, uint16_t host_port)
{
    return (struct net_user_config) {.forward_count = 1,
                                     .forward = {{.udp = udp,
                                                  .host_address = INADDR_LOOPBACK,
                                                  .host_port = host_port,
                                                  .guest_port = 7}}};
}

static void test_forwarded_port_reaches_guest(void **state)
{
    struct fixture *f = *state;
    uint16_t port;
    close(bound_socket(SOCK_DGRAM, &port)); /* a port that is free now */
    open_net(f, forward_config(true, port));
    send_arp(f, "10.0.2.2"); /* tells the helper the guest's address */
    wait_until(f, f->count == 1);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    assert_int_equal(sendto(fd, "hello", 5, 0, (struct sockaddr *)&to, sizeof to), 5);
    wait_until(f, f->count == 2);
    assert_memory_equal(f->frame[1] + 30, "\x0a\x00\x02\x0f", 4);
    assert_memory_equal(f->frame[1] + 42, "hello", 5);
    close(fd);
}

static void test_port_in_use_is_told_by_name(void **state)
{
    struct fixture *f = *state;
    uint16_t port;
    int fd = bound_socket(SOCK_STREAM, &port);
    assert_int_equal(listen(fd, 1), 0);
    struct net_user_config config = forward_config(false, port);
    config.loop = f->loop;
    struct err err = {{0}};
    assert_int_equal(net_user_open(&f->net, &config, &err), -EADDRINUSE);
    assert_null(f->net);
    char words[64];
    snprintf(words, sizeof words, "--net user: hostfwd: tcp port %u of 127.0.0.1", port);
    if (!strstr(err.text, words))
        fail_msg("'%s' has no '%s'", err.text, words);
    close(fd);
}

static void test_frame_waits_while_card_is_full(void **state)
{
    struct fixture *f = *state;
    open_net(f, (struct net_user_config) {0});
    f->refuse = true;
    for (int i = 0; i < 5; i++)
        send_arp(f, "10.0.2.2");
    wait_until(f, f->refused == 1);
    f->net->ops->pause_receive(f->net, true);
    assert_int_equal(loop_run_once(f->loop, 0), 0);
    f->refuse = false;
    f->net->ops->pause_receive(f->net, false);
    wait_until(f, f->count == 5); /* none was lost, also not the refused one */
    assert_int_equal(f->refused, 1);
}

static void on_can_send(void *context)
{
    *(int *)context += 1;
}

static void test_full_socket_asks_to_wait(void **state)
{
    struct fixture *f = *state;
    int pid = -1, calls = 0;
    open_net(f, (struct net_user_config) {0});
    f->net->client = (struct net_client) {.can_send = on_can_send, .context = &calls};
    char line[64] = "";
    snprintf(line, sizeof line, "/proc/self/task/%d/children", getpid());
    FILE *children = fopen(line, "r");
    if (!children || fscanf(children, "%d", &pid) != 1)
        skip(); /* this kernel does not list children */
    fclose(children);
    kill(pid, SIGSTOP);
    uint8_t frame[1514] = {0};
    struct iovec iov = {frame, sizeof frame};
    int result = 0;
    for (int i = 0; i < 100000 && result == 0; i++)
        result = f->net->ops->send(f->net, &iov, 1);
    kill(pid, SIGCONT);
    assert_int_equal(result, -EAGAIN);
    wait_until(f, calls == 1);
    assert_int_equal(f->net->ops->send(f->net, &iov, 1), 0);
    f->net->client = (struct net_client) {.link = on_link, .context = f};
    kill(pid, SIGKILL);
    wait_until(f, f->links == 1); /* the cable is out */
    assert_int_equal(f->net->ops->send(f->net, &iov, 1), -EPIPE);
}

static void test_helper_refuses_a_stranger(void **state)
{
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(pair[1], NET_USER_HELPER_FD);
        _exit(net_user_helper_main());
    }
    struct net_user_hello hello = {.magic = NET_USER_HELLO_MAGIC,
                                   .forward_count = NET_USER_FORWARDS_MAX + 1};
    assert_int_equal(send(pair[0], &hello, sizeof hello, 0), sizeof hello);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    close(pair[0]);
    close(pair[1]);
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], NET_USER_HELPER_COMMAND) == 0)
        return net_user_helper_main();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_gateway_answers_arp, setup, teardown),
        cmocka_unit_test_setup_teardown(test_dhcp_offers_the_guests_address, setup, teardown),
        cmocka_unit_test_setup_teardown(test_host_loopback_only_when_asked, setup, teardown),
        cmocka_unit_test_setup_teardown(test_forwarded_port_reaches_guest, setup, teardown),
        cmocka_unit_test_setup_teardown(test_port_in_use_is_told_by_name, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frame_waits_while_card_is_full, setup, teardown),
        cmocka_unit_test_setup_teardown(test_full_socket_asks_to_wait, setup, teardown),
        cmocka_unit_test(test_helper_refuses_a_stranger),
    };
    return cmocka_run_group_tests_name("net_user", tests, NULL, NULL);
}
