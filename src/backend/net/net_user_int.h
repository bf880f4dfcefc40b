/*
 * What passes between the VM process and its network helper over a SOCK_SEQPACKET pair: one hello
 * from the VM process, one answer, then Ethernet frames both ways, one a packet. Either side ends
 * when the other's end is closed.
 */
#ifndef PARAT_BACKEND_NET_NET_USER_INT_H
#define PARAT_BACKEND_NET_NET_USER_INT_H

#include "backend/net/net.h"

#define NET_USER_HELLO_MAGIC   0x70726e31u /* both sides are the same program: a check of wiring */
#define NET_USER_FRAME_MIN     14
#define NET_USER_FRAMES_A_TURN 64 /* so that one direction does not starve the rest */

struct net_user_hello {
    uint32_t magic;
    bool host_loopback, confined;
    uint32_t forward_count;
    struct net_user_forward forward[NET_USER_FORWARDS_MAX];
};

struct net_user_answer {
    int32_t error;          /* 0 or -errno */
    uint32_t forward_index; /* the forward that failed; at or above the count: something else */
};

#endif
