/*
 * --net user, the VM process's side: starts the helper (this program again, with a clean address
 * space) and moves frames over a socket pair. send runs on any thread, the rest on the loop thread.
 * What does not fit waits where it is: a frame for the guest in one buffer here, a frame from the
 * guest in the guest's ring.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backend/net/net.h"
#include "backend/net/net_user_int.h"
#include "base/log.h"
#include "base/loop.h"

#define READY_TIMEOUT_MS 10000

struct net_user {
    struct net net;
    struct loop *loop;
    pid_t helper;
    int pidfd; /* of the helper, or -1 */
    struct loop_watch watch;
    bool watched; /* the rest of this block: loop thread */
    uint32_t watched_events;
    bool gone;             /* the helper ended */
    size_t pending_length; /* of a frame that the card had no room for */
    struct loop_message message;
    _Atomic bool paused;
    _Atomic bool want_send; /* send was refused: tell can_send */
    uint8_t frame[NET_FRAME_MAX];
};

static struct net_user *net_user_of(struct net *net)
{
    return container_of(net, struct net_user, net);
}

/* Frames */

static bool wants_receive(const struct net_user *user)
{
    return !user->gone && !user->pending_length && !atomic_load(&user->paused);
}

/* An end that hung up is reported whatever was asked for: with nothing to do, no watch. */
static void update_watch(struct net_user *user)
{
    uint32_t events = (wants_receive(user) ? EPOLLIN : 0) |
                      (!user->gone && atomic_load(&user->want_send) ? EPOLLOUT : 0);
    if (events == user->watched_events)
        return;
    if (user->watched)
        loop_watch_remove(&user->watch);
    user->watched = events && loop_watch_add(user->loop, &user->watch, events) == 0;
    user->watched_events = user->watched ? events : 0;
}

static void set_gone(struct net_user *user)
{
    user->gone = true;
    log_warning("--net user: the network helper ended; the cable is out");
    if (user->net.client.link)
        user->net.client.link(user->net.client.context, false);
}

/* True when the frame left the buffer. */
static bool give_frame(struct net_user *user, size_t length)
{
    const struct net_client *client = &user->net.client;
    bool taken = !client->receive || client->receive(client->context, user->frame, length);
    user->pending_length = taken ? 0 : length;
    return taken;
}

static void receive_frames(struct net_user *user)
{
    for (int i = 0; i < NET_USER_FRAMES_A_TURN && wants_receive(user); i++) {
        ssize_t length = recv(user->watch.fd, user->frame, sizeof user->frame, MSG_DONTWAIT);
        if (length < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (length <= 0) {
            set_gone(user);
            return;
        }
        if (!give_frame(user, (size_t)length))
            return;
    }
}

static void tell_can_send(struct net_user *user)
{
    if (atomic_exchange(&user->want_send, false) && user->net.client.can_send)
        user->net.client.can_send(user->net.client.context);
}

static void on_event(struct loop_watch *watch, uint32_t events)
{
    struct net_user *user = container_of(watch, struct net_user, watch);
    if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
        tell_can_send(user);
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        receive_frames(user);
    update_watch(user);
}

static void on_message(struct loop_message *message)
{
    struct net_user *user = container_of(message, struct net_user, message);
    if (user->pending_length && !atomic_load(&user->paused))
        give_frame(user, user->pending_length);
    update_watch(user);
}

static int user_send(struct net *net, const struct iovec *iov, unsigned count)
{
    struct net_user *user = net_user_of(net);
    struct msghdr message = {.msg_iov = (struct iovec *)iov, .msg_iovlen = count};
    if (sendmsg(user->watch.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
        return 0;
    if (errno != EAGAIN && errno != ENOBUFS)
        return -errno;
    /* The watch looks at the socket after want_send is set: room made in between is seen. */
    atomic_store(&user->want_send, true);
    loop_post(user->loop, &user->message);
    return -EAGAIN;
}

static void user_pause_receive(struct net *net, bool paused)
{
    struct net_user *user = net_user_of(net);
    atomic_store(&user->paused, paused);
    loop_post(user->loop, &user->message);
}

/* Closing */

/* The end of its socket would end it, too, when it comes to that. By pidfd, because the sandbox
 * knows no other processes. */
static void end_helper(const struct net_user *user)
{
    if (user->helper <= 0)
        return;
    if (user->pidfd >= 0)
        (void)syscall(SYS_pidfd_send_signal, user->pidfd, SIGKILL, NULL, 0); /* nothing to save */
    while (waitpid(user->helper, NULL, 0) < 0 && errno == EINTR)
        ;
}

static void user_close(struct net *net)
{
    struct net_user *user = net_user_of(net);
    loop_message_cancel(user->loop, &user->message);
    if (user->watched)
        loop_watch_remove(&user->watch);
    if (user->watch.fd >= 0)
        close(user->watch.fd);
    end_helper(user);
    if (user->pidfd >= 0)
        close(user->pidfd);
    free(user);
}

static const struct net_ops net_user_ops = {
    .send = user_send,
    .pause_receive = user_pause_receive,
    .close = user_close,
};

/* Starting */

/* A session of its own, so that the terminal's signals do not reach it, and no signal blocked. */
static int set_attributes(posix_spawnattr_t *attributes)
{
    sigset_t none, defaults;
    sigemptyset(&none);
    sigfillset(&defaults);
    posix_spawnattr_setsigmask(attributes, &none);
    posix_spawnattr_setsigdefault(attributes, &defaults);
    return -posix_spawnattr_setflags(attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK |
                                                     POSIX_SPAWN_SETSIGDEF);
}

static int spawn_helper(pid_t *helper, int socket)
{
    char *args[] = {"parat", NET_USER_HELPER_COMMAND, NULL};
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    int error = -posix_spawn_file_actions_adddup2(&actions, socket, NET_USER_HELPER_FD);
    if (!error)
        error = set_attributes(&attributes);
    if (!error)
        error = -posix_spawn(helper, "/proc/self/exe", &actions, &attributes, args, environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return error;
}

static int start_helper(struct net_user *user, struct err *err)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return err_set(err, errno, "--net user: cannot make a socket pair: %s", strerror(errno));
    user->watch.fd = pair[0];
    int error = spawn_helper(&user->helper, pair[1]);
    close(pair[1]);
    if (error) {
        user->helper = 0;
        return err_set(err, -error, "--net user: cannot start the network helper: %s",
                       strerror(-error));
    }
    user->pidfd = (int)syscall(SYS_pidfd_open, user->helper, 0);
    return 0;
}

static int answer_error(const struct net_user_config *config, const struct net_user_answer *answer,
                        struct err *err)
{
    if (answer->forward_index >= config->forward_count)
        return err_set(err, -answer->error, "--net user: the network helper failed: %s",
                       strerror(-answer->error));
    const struct net_user_forward *f = &config->forward[answer->forward_index];
    uint32_t a = f->host_address;
    return err_set(err, -answer->error, "--net user: hostfwd: %s port %u of %u.%u.%u.%u: %s",
                   f->udp ? "udp" : "tcp", f->host_port, a >> 24, a >> 16 & 255, a >> 8 & 255,
                   a & 255, strerror(-answer->error));
}

static int say_hello(struct net_user *user, const struct net_user_config *config, struct err *err)
{
    struct net_user_hello hello = {.magic = NET_USER_HELLO_MAGIC,
                                   .host_loopback = config->host_loopback,
                                   .confined = config->confined,
                                   .forward_count = config->forward_count};
    memcpy(hello.forward, config->forward, sizeof hello.forward);
    struct net_user_answer answer = {0};
    struct pollfd p = {.fd = user->watch.fd, .events = POLLIN};
    if (send(user->watch.fd, &hello, sizeof hello, MSG_NOSIGNAL) < 0)
        return err_set(err, errno, "--net user: the network helper did not start: %s",
                       strerror(errno));
    if (poll(&p, 1, READY_TIMEOUT_MS) <= 0 ||
        recv(user->watch.fd, &answer, sizeof answer, MSG_DONTWAIT) != sizeof answer)
        return err_set(err, EIO, "--net user: the network helper ended without an answer");
    return answer.error ? answer_error(config, &answer, err) : 0;
}

int net_user_open(struct net **out, const struct net_user_config *config, struct err *err)
{
    struct net_user *user = calloc(1, sizeof *user);
    if (!user)
        return err_set(err, ENOMEM, "--net user: out of memory");
    user->net.ops = &net_user_ops;
    user->loop = config->loop;
    user->watch.fd = user->pidfd = -1;
    user->watch.handler = on_event;
    user->message.handler = on_message;
    atomic_store(&user->paused, true); /* until the card has buffers */
    int error = start_helper(user, err);
    if (!error)
        error = say_hello(user, config, err);
    if (error) {
        user_close(&user->net);
        return error;
    }
    *out = &user->net;
    return 0;
}
