/*
 * Doorbells of a virtio PCI function; see virtio_pci_bells.h. Loop thread. A bell that the loop has
 * not heard when the device is saved needs no place in the state: a device that is loaded looks at
 * all of its queues.
 */
#include "device/virtio/virtio_pci_bells.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "device/virtio/virtio_pci.h"
#include "vm/machine.h"

#define NOTIFY_SIZE                                                                                \
    2 /* a driver writes the queue's number, 16 bits (virtio 1.2 section 4.1.5.2)                  \
       */

static void on_ring(struct loop_watch *watch, uint32_t events)
{
    struct virtio_pci_bell *bell = container_of(watch, struct virtio_pci_bell, watch);
    uint64_t rings;
    (void)events;
    if (read(watch->fd, &rings, sizeof rings) != sizeof rings)
        return;
    pthread_mutex_lock(&bell->virtio->device.lock);
    virtio_notify(bell->virtio, bell->queue);
    pthread_mutex_unlock(&bell->virtio->device.lock);
}

static int create_one(struct virtio_pci_bells *bells, struct virtio_device *virtio, unsigned queue)
{
    struct virtio_pci_bell *bell = &bells->bell[queue];
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (fd < 0)
        return -errno;
    *bell = (struct virtio_pci_bell) {
        .watch = {.fd = fd, .handler = on_ring}, .virtio = virtio, .queue = queue};
    int error = loop_watch_add(virtio->device.machine->loop, &bell->watch, EPOLLIN);
    if (error) {
        close(fd);
        return error;
    }
    bells->doorbell[queue] = (struct pci_doorbell) {
        .offset = VIRTIO_PCI_NOTIFY + queue * VIRTIO_PCI_NOTIFY_FACTOR,
        .size = NOTIFY_SIZE,
        .fd = fd,
    };
    bells->count = queue + 1;
    return 0;
}

int virtio_pci_bells_create(struct virtio_pci_bells *bells, struct virtio_device *virtio,
                            struct pci_function *function, struct err *err)
{
    int error = 0;
    if (!virtio->device.machine->engine->doorbell_add)
        return 0;
    for (unsigned i = 0; i < virtio->queue_count && !error; i++)
        error = create_one(bells, virtio, i);
    if (error) {
        virtio_pci_bells_destroy(bells);
        return err_set(err, -error, "%s: cannot make its doorbells: %s", virtio->device.path,
                       strerror(-error));
    }
    pci_function_set_doorbells(function, VIRTIO_PCI_BAR, bells->doorbell, bells->count);
    return 0;
}

void virtio_pci_bells_destroy(struct virtio_pci_bells *bells)
{
    for (unsigned i = 0; i < bells->count; i++) {
        loop_watch_remove(&bells->bell[i].watch);
        close(bells->bell[i].watch.fd);
    }
    bells->count = 0;
}
