/* virtio block device (virtio 1.2 section 5.2). */
#ifndef PARAT_DEVICE_VIRTIO_VIRTIO_BLK_H
#define PARAT_DEVICE_VIRTIO_VIRTIO_BLK_H

#include "device/virtio/virtio.h"

struct disk;

#define VIRTIO_BLK_SERIAL_SIZE 20

struct virtio_blk_config {
    struct virtio_attach transport;
    struct disk *disk;    /* stays the caller's; outlives the device */
    const char *serial;   /* at most VIRTIO_BLK_SERIAL_SIZE characters; NULL: none */
    unsigned queue_count; /* as many as vCPUs */
};

extern const struct device_class virtio_blk_class;

/* Feature bits (5.2.3) */
#define VIRTIO_BLK_F_SIZE_MAX     BIT(1)
#define VIRTIO_BLK_F_SEG_MAX      BIT(2)
#define VIRTIO_BLK_F_RO           BIT(5)
#define VIRTIO_BLK_F_BLK_SIZE     BIT(6)
#define VIRTIO_BLK_F_FLUSH        BIT(9)
#define VIRTIO_BLK_F_TOPOLOGY     BIT(10)
#define VIRTIO_BLK_F_MQ           BIT(12)
#define VIRTIO_BLK_F_DISCARD      BIT(13)
#define VIRTIO_BLK_F_WRITE_ZEROES BIT(14)

/* Requests (5.2.6) */
#define VIRTIO_BLK_T_IN           0
#define VIRTIO_BLK_T_OUT          1
#define VIRTIO_BLK_T_FLUSH        4
#define VIRTIO_BLK_T_GET_ID       8
#define VIRTIO_BLK_T_DISCARD      11
#define VIRTIO_BLK_T_WRITE_ZEROES 13

#define VIRTIO_BLK_S_OK     0
#define VIRTIO_BLK_S_IOERR  1
#define VIRTIO_BLK_S_UNSUPP 2

#endif
