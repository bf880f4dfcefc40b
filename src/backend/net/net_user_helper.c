/*
 * The network helper: a process of its own in which libslirp plays the network 10.0.2.0/24 (NAT,
 * DHCP, DNS) with ordinary sockets. One thread. It trusts neither the guest's frames nor the
 * network; a fault in it ends the guest's network, not the VM.
 *
 * When the VM process does not take frames, the host's sockets are not read either: TCP holds the
 * far side up instead of frames being lost here.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <slirp/libslirp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backend/net/net.h"
#include "backend/net/net_user_int.h"
#include "base/clock.h"
#include "base/list.h"
#include "base/sandbox.h"

#define POLL_MAX       4096
#define BACKLOG_MAX    (4u << 20) /* bytes of frames that wait for the VM process */
#define ETHERTYPE_IPV4 0x0800
#define IPV4_DST       (NET_USER_FRAME_MIN + 16) /* RFC 791 section 3.1 */

struct backlog_frame {
    struct list link;
    size_t length;
    uint8_t data[];
};

struct helper {
    Slirp *slirp;
    int socket;
    bool ended;
    struct list backlog;
    size_t backlog_size;
    unsigned poll_count;
    struct pollfd poll[POLL_MAX];
    uint8_t frame[NET_FRAME_MAX];
};

/* What libslirp calls */

static bool send_now(struct helper *helper, const void *data, size_t length)
{
    if (send(helper->socket, data, length, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
        return true;
    if (errno == EAGAIN || errno == ENOBUFS)
        return false;
    helper->ended = true;
    return true;
}

static ssize_t on_send_packet(const void *data, size_t length, void *opaque)
{
    struct helper *helper = opaque;
    if (list_empty(&helper->backlog) && send_now(helper, data, length))
        return (ssize_t)length;
    if (length > NET_FRAME_MAX || helper->backlog_size + length > BACKLOG_MAX)
        return (ssize_t)length; /* lost, as on any wire */
    struct backlog_frame *frame = malloc(sizeof *frame + length);
    if (!frame)
        return (ssize_t)length;
    frame->length = length;
    memcpy(frame->data, data, length);
    list_push_back(&helper->backlog, &frame->link);
    helper->backlog_size += length;
    return (ssize_t)length;
}

static void flush_backlog(struct helper *helper)
{
    while (!list_empty(&helper->backlog)) {
        struct backlog_frame *frame =
            container_of(helper->backlog.next, struct backlog_frame, link);
        if (!send_now(helper, frame->data, frame->length))
            return;
        list_remove(&frame->link);
        helper->backlog_size -= frame->length;
        free(frame);
    }
}

static void on_guest_error(const char *text, void *opaque)
{
    /* The guest could say this without end. */
}

static int64_t on_clock(void *opaque)
{
    return (int64_t)clock_host_ns();
}

/* Only IPv6, which is off, uses timers; libslirp wants the functions all the same. */
static void *on_timer_new(SlirpTimerId id, void *cb_opaque, void *opaque)
{
    return opaque;
}

static void on_timer_free(void *timer, void *opaque)
{
}

static void on_timer_mod(void *timer, int64_t expire_ms, void *opaque)
{
}

static void on_poll_fd(int fd, void *opaque)
{
}

static void on_notify(void *opaque)
{
}

static const SlirpCb callbacks = {
    .send_packet = on_send_packet,
    .guest_error = on_guest_error,
    .clock_get_ns = on_clock,
    .timer_new_opaque = on_timer_new,
    .timer_free = on_timer_free,
    .timer_mod = on_timer_mod,
    .register_poll_fd = on_poll_fd,
    .unregister_poll_fd = on_poll_fd,
    .notify = on_notify,
};

static const struct {
    int slirp;
    short poll;
} event_pairs[] = {
    {SLIRP_POLL_IN, POLLIN},   {SLIRP_POLL_OUT, POLLOUT}, {SLIRP_POLL_PRI, POLLPRI},
    {SLIRP_POLL_ERR, POLLERR}, {SLIRP_POLL_HUP, POLLHUP},
};

static int on_add_poll(int fd, int events, void *opaque)
{
    struct helper *helper = opaque;
    if (helper->poll_count == POLL_MAX)
        return -1; /* on_get_events answers "nothing happened" to it */
    struct pollfd *p = &helper->poll[helper->poll_count];
    *p = (struct pollfd) {.fd = fd};
    for (size_t i = 0; i < ARRAY_COUNT(event_pairs); i++)
        if (events & event_pairs[i].slirp)
            p->events |= event_pairs[i].poll;
    return (int)helper->poll_count++;
}

static int on_get_events(int index, void *opaque)
{
    struct helper *helper = opaque;
    int events = 0;
    if (index <= 0 || (unsigned)index >= helper->poll_count)
        return 0;
    for (size_t i = 0; i < ARRAY_COUNT(event_pairs); i++)
        if (helper->poll[index].revents & event_pairs[i].poll)
            events |= event_pairs[i].slirp;
    return events;
}

/* Frames from the guest */

/*
 * 127.0.0.0/8 and 0.0.0.0/8 as a destination would reach the host's loopback past
 * disable_host_loopback: libslirp connects to any address outside its own network as it is.
 */
static bool is_forbidden(const uint8_t *frame, size_t length)
{
    if (length < NET_USER_FRAME_MIN)
        return true;
    unsigned ethertype = (unsigned)frame[12] << 8 | frame[13];
    return ethertype == ETHERTYPE_IPV4 &&
           (length <= IPV4_DST || frame[IPV4_DST] == 127 || frame[IPV4_DST] == 0);
}

static void receive_frames(struct helper *helper)
{
    for (int i = 0; i < NET_USER_FRAMES_A_TURN; i++) {
        ssize_t length = recv(helper->socket, helper->frame, sizeof helper->frame, MSG_DONTWAIT);
        if (length < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (length <= 0) {
            helper->ended = true;
            return;
        }
        if (!is_forbidden(helper->frame, (size_t)length))
            slirp_input(helper->slirp, helper->frame, (int)length);
    }
}

static void run_turn(struct helper *helper)
{
    bool blocked = !list_empty(&helper->backlog);
    uint32_t timeout_ms = blocked ? UINT32_MAX : 1000;
    helper->poll[0] =
        (struct pollfd) {.fd = helper->socket, .events = (short)(POLLIN | (blocked ? POLLOUT : 0))};
    helper->poll_count = 1;
    if (!blocked)
        slirp_pollfds_fill(helper->slirp, &timeout_ms, on_add_poll, helper);
    int timeout = timeout_ms > 60000 ? 60000 : (int)timeout_ms;
    int ready = poll(helper->poll, helper->poll_count, timeout);
    if (ready < 0 && errno != EINTR) {
        helper->ended = true;
        return;
    }
    if (ready > 0 && helper->poll[0].revents & POLLOUT)
        flush_backlog(helper);
    if (ready > 0 && helper->poll[0].revents & ~POLLOUT)
        receive_frames(helper);
    if (!blocked)
        slirp_pollfds_poll(helper->slirp, ready < 0, on_get_events, helper);
}

/* Start */

static struct in_addr address(const char *text)
{
    struct in_addr out = {0};
    inet_pton(AF_INET, text, &out);
    return out;
}

static int create_slirp(struct helper *helper, const struct net_user_hello *hello)
{
    SlirpConfig config = {
        .version = 4,
        .in_enabled = true,
        .vnetwork = address("10.0.2.0"),
        .vnetmask = address("255.255.255.0"),
        .vhost = address("10.0.2.2"),
        .vdhcp_start = address("10.0.2.15"),
        .vnameserver = address("10.0.2.3"),
        .disable_host_loopback = !hello->host_loopback,
    };
    helper->slirp = slirp_new(&config, &callbacks, helper);
    return helper->slirp ? 0 : -ENOMEM;
}

static struct net_user_answer add_forwards(struct helper *helper,
                                           const struct net_user_hello *hello)
{
    for (uint32_t i = 0; i < hello->forward_count; i++) {
        const struct net_user_forward *f = &hello->forward[i];
        struct in_addr host = {.s_addr = htonl(f->host_address)};
        errno = 0;
        if (slirp_add_hostfwd(helper->slirp, f->udp, host, f->host_port, address("10.0.2.15"),
                              f->guest_port) < 0)
            return (struct net_user_answer) {errno ? -errno : -EADDRINUSE, i};
    }
    return (struct net_user_answer) {0, UINT32_MAX};
}

/* Everything is open that needs a privilege. */
static int confine(void)
{
    const struct sandbox_config config = {.roles = BIT(SANDBOX_NET_HELPER)};
    struct sandbox *sandbox;
    struct err err;
    sandbox_leave_root();
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* another user: the kernel has forgotten it */
    int error = sandbox_create(&sandbox, &config, &err);
    if (error)
        return error;
    sandbox_enter(sandbox, SANDBOX_NET_HELPER);
    sandbox_destroy(sandbox);
    return 0;
}

static int start(struct helper *helper)
{
    struct net_user_hello hello;
    if (recv(helper->socket, &hello, sizeof hello, 0) != sizeof hello ||
        hello.magic != NET_USER_HELLO_MAGIC || hello.forward_count > NET_USER_FORWARDS_MAX)
        return -EPROTO;
    struct net_user_answer answer = {.error = create_slirp(helper, &hello),
                                     .forward_index = UINT32_MAX};
    if (!answer.error)
        answer = add_forwards(helper, &hello);
    if (!answer.error && hello.confined)
        answer.error = confine();
    if (send(helper->socket, &answer, sizeof answer, MSG_NOSIGNAL) < 0)
        return -errno;
    return answer.error;
}

int net_user_helper_main(void)
{
    /* The socket's end tells that the VM process is gone; this is for the case that it leaked. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    prctl(PR_SET_NAME, "parat-net");
    close_range(NET_USER_HELPER_FD + 1, ~0u, 0); /* what the user's shell left open */
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    sigaction(SIGPIPE, &ignore, NULL);
    struct helper *helper = calloc(1, sizeof *helper);
    if (!helper)
        return 1;
    helper->socket = NET_USER_HELPER_FD;
    list_init(&helper->backlog);
    int error = start(helper);
    while (!error && !helper->ended)
        run_turn(helper);
    return error ? 1 : 0; /* the rest ends with the process */
}
