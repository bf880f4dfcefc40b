/*
 * The host side of a network card: Ethernet frames in both directions. No guest addresses.
 *
 * A frame travels with the 10 bytes that virtio-net's header needs for checksum offload; a backend
 * without offloads ignores them on transmit (it was told so at creation and gets none).
 */
#ifndef PARAT_BACKEND_NET_NET_H
#define PARAT_BACKEND_NET_NET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/bits.h"
#include "base/err.h"

#define NET_FRAME_MAX 65550 /* Ethernet header and the largest IP packet */

struct loop;
struct net;

/*
 * The card calls these with its device's lock held, so none of them calls back into net_client:
 * what there is to tell comes later, from the loop.
 */
struct net_ops {
    /*
     * Sends one frame (without virtio header). 0; -EAGAIN when it does not fit now: can_send() is
     * called when it may; other errors: the frame is lost. Any thread, one at a time.
     */
    int (*send)(struct net *net, const struct iovec *iov, unsigned count);
    /* Stops or restarts calls of receive(); false also asks again for a frame that was refused. A
     * backend starts paused. Any thread. */
    void (*pause_receive)(struct net *net, bool paused);
    void (*close)(struct net *net);
};

/*
 * What the card gives; set when the card is created (before the loop runs), and cleared to NULL
 * when it is destroyed. Called on the loop thread with no lock held.
 */
struct net_client {
    /* A frame for the guest; false: no room now, keep it and wait for pause_receive(false),
     * which may be called (on another thread) before receive has returned. */
    bool (*receive)(void *context, const uint8_t *frame, size_t length);
    void (*can_send)(void *context);
    void (*link)(void *context, bool up);
    void *context;
};

struct net {
    const struct net_ops *ops;
    struct net_client client;
    bool checksum_offload; /* takes frames whose checksum is not filled in */
};

/* --net user: libslirp in a helper process. */
struct net_user_forward {
    bool udp;
    uint32_t host_address; /* IPv4, host byte order */
    uint16_t host_port, guest_port;
};

#define NET_USER_FORWARDS_MAX 32

struct net_user_config {
    struct loop *loop;
    bool host_loopback; /* the guest reaches the host's 127.0.0.1 as 10.0.2.2 */
    bool confined;      /* the helper enters its sandbox */
    unsigned forward_count;
    struct net_user_forward forward[NET_USER_FORWARDS_MAX];
};

/* Starts the helper and waits until its ports are bound; errors name the forward that failed. */
int net_user_open(struct net **out, const struct net_user_config *config, struct err *err) MUST_USE;

/*
 * The helper process: what the program's hidden command NET_USER_HELPER_COMMAND runs, with the
 * socket as NET_USER_HELPER_FD. Returns the exit status when the VM process is gone.
 */
#define NET_USER_HELPER_COMMAND "net-helper"
#define NET_USER_HELPER_FD      3
int net_user_helper_main(void);

#endif
