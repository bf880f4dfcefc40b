/* virtio network device (virtio 1.2 section 5.1): one pair of queues and a control queue. */
#ifndef PARAT_DEVICE_VIRTIO_VIRTIO_NET_H
#define PARAT_DEVICE_VIRTIO_VIRTIO_NET_H

#include "device/virtio/virtio.h"

struct net;

#define VIRTIO_NET_MAC_SIZE 6

struct virtio_net_config {
    struct virtio_attach transport;
    struct net *net; /* stays the caller's; outlives the device */
    uint8_t mac[VIRTIO_NET_MAC_SIZE];
};

extern const struct device_class virtio_net_class;

/* Feature bits (5.1.3) */
#define VIRTIO_NET_F_CSUM          BIT(0)
#define VIRTIO_NET_F_GUEST_CSUM    BIT(1)
#define VIRTIO_NET_F_MAC           BIT(5)
#define VIRTIO_NET_F_MRG_RXBUF     BIT(15)
#define VIRTIO_NET_F_STATUS        BIT(16)
#define VIRTIO_NET_F_CTRL_VQ       BIT(17)
#define VIRTIO_NET_F_CTRL_RX       BIT(18)
#define VIRTIO_NET_F_CTRL_MAC_ADDR BIT(23)

/* The header before each frame (5.1.6) */
#define VIRTIO_NET_HEADER_SIZE      12
#define VIRTIO_NET_HDR_F_NEEDS_CSUM 1

#define VIRTIO_NET_QUEUE_RECEIVE  0
#define VIRTIO_NET_QUEUE_TRANSMIT 1
#define VIRTIO_NET_QUEUE_CONTROL  2

/* Control commands (5.1.6.5): class, command */
#define VIRTIO_NET_CTRL_RX           0
#define VIRTIO_NET_CTRL_MAC          1
#define VIRTIO_NET_CTRL_MAC_TABLE    0
#define VIRTIO_NET_CTRL_MAC_ADDR_SET 1
#define VIRTIO_NET_OK                0
#define VIRTIO_NET_ERR               1

#endif
