/*
 * A guest's virtio driver for unit tests: finds a function through the ECAM, sets it up through its
 * registers as a driver would, and builds rings in the machine's RAM. No vCPU runs.
 *
 * RAM: rings of queue q at GUEST_RINGS + q * GUEST_RING_STRIDE, buffers from GUEST_BUFFERS on.
 */
#ifndef PARAT_TESTS_VIRTIO_GUEST_H
#define PARAT_TESTS_VIRTIO_GUEST_H

#include "rig.h"

#include "device/pci/pci.h"
#include "device/virtio/virtio.h"
#include "device/virtio/virtio_pci.h"
#include "vm/pci_irq.h"

#define GUEST_RAM         (8u << 20)
#define GUEST_RINGS       0x100000u
#define GUEST_RING_STRIDE 0x4000u
#define GUEST_AVAIL       0x1000u /* behind the descriptors */
#define GUEST_USED        0x2000u
#define GUEST_BUFFERS     0x400000u

#define DESC_NEXT     1
#define DESC_WRITE    2
#define DESC_INDIRECT 4

#define GUEST_STATUS_READY                                                                         \
    (VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_FEATURES_OK)

struct guest_queue {
    unsigned index, size;
    uint64_t descriptors, avail, used;
    uint16_t avail_idx, used_idx; /* what the guest wrote, and has seen */
    unsigned next_desc;
};

struct guest {
    struct machine *machine;
    struct pci_host *host;
    struct device *device;
    unsigned slot;
    uint64_t bar, msix_bar;
    struct guest_queue queue[VIRTIO_QUEUES_MAX];
};

static inline void guest_create(struct guest *g, unsigned slot)
{
    memset(g, 0, sizeof *g);
    g->machine = rig_create(GUEST_RAM, 1);
    g->host = pci_host_of(rig_add(g->machine, &pci_host_class, NULL));
    g->slot = slot;
}

static inline void guest_destroy(struct guest *g)
{
    rig_destroy(g->machine);
}

/* --- config space --- */

static inline uint64_t guest_ecam(const struct guest *g, unsigned offset)
{
    return MACHINE_ECAM_BASE + ((uint64_t)g->slot << 15) + offset;
}

static inline uint32_t guest_config_read(struct guest *g, unsigned offset, unsigned size)
{
    return (uint32_t)bus_read(g->machine->mmio, guest_ecam(g, offset), size);
}

static inline void guest_config_write(struct guest *g, unsigned offset, unsigned size, uint32_t v)
{
    bus_write(g->machine->mmio, guest_ecam(g, offset), size, v);
}

static inline uint64_t guest_bar(struct guest *g, unsigned index)
{
    uint32_t low = guest_config_read(g, PCI_BAR0 + index * 4, 4);
    uint32_t high = guest_config_read(g, PCI_BAR0 + index * 4 + 4, 4);
    return (uint64_t)high << 32 | (low & ~0xfu);
}

static inline unsigned guest_find_capability(struct guest *g, uint8_t id, int virtio_type)
{
    unsigned at = guest_config_read(g, PCI_CAPABILITIES, 1);
    for (unsigned i = 0; at && i < 48; i++) {
        if (guest_config_read(g, at, 1) == id &&
            (virtio_type < 0 || guest_config_read(g, at + 3, 1) == (unsigned)virtio_type))
            return at;
        at = guest_config_read(g, at + 1, 1);
    }
    return 0;
}

/* Memory decoding and bus mastering on. */
static inline void guest_enable(struct guest *g)
{
    guest_config_write(g, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_BUS_MASTER);
    g->bar = guest_bar(g, VIRTIO_PCI_BAR);
    g->msix_bar = guest_bar(g, VIRTIO_PCI_MSIX_BAR);
}

static inline void guest_enable_msix(struct guest *g, unsigned vectors)
{
    unsigned cap = guest_find_capability(g, PCI_CAPABILITY_MSIX, -1);
    assert_int_not_equal(cap, 0);
    for (unsigned i = 0; i < vectors; i++) {
        bus_write(g->machine->mmio, g->msix_bar + i * 16, 4, 0xfee00000);
        bus_write(g->machine->mmio, g->msix_bar + i * 16 + 4, 4, 0);
        bus_write(g->machine->mmio, g->msix_bar + i * 16 + 8, 4, 0x40 + i);
        bus_write(g->machine->mmio, g->msix_bar + i * 16 + 12, 4, 0);
    }
    guest_config_write(g, cap + PCI_MSIX_CONTROL, 2, PCI_MSIX_CONTROL_ENABLE);
}

static inline unsigned guest_msi_count(struct guest *g)
{
    struct engine_fake_log log;
    engine_fake_read_log(g->machine->engine_vm, &log);
    return log.msi_count;
}

/* --- registers --- */

static inline uint64_t guest_read(struct guest *g, unsigned offset, unsigned size)
{
    return bus_read(g->machine->mmio, g->bar + offset, size);
}

static inline void guest_write(struct guest *g, unsigned offset, unsigned size, uint64_t value)
{
    bus_write(g->machine->mmio, g->bar + offset, size, value);
}

static inline uint8_t guest_status(struct guest *g)
{
    return (uint8_t)guest_read(g, VIRTIO_PCI_DEVICE_STATUS, 1);
}

static inline void guest_set_status(struct guest *g, uint8_t status)
{
    guest_write(g, VIRTIO_PCI_DEVICE_STATUS, 1, status);
}

static inline uint64_t guest_offered(struct guest *g)
{
    guest_write(g, VIRTIO_PCI_DEVICE_FEATURE_SELECT, 4, 0);
    uint64_t features = guest_read(g, VIRTIO_PCI_DEVICE_FEATURE, 4);
    guest_write(g, VIRTIO_PCI_DEVICE_FEATURE_SELECT, 4, 1);
    return features | guest_read(g, VIRTIO_PCI_DEVICE_FEATURE, 4) << 32;
}

/* Up to FEATURES_OK; the status tells whether the device agreed. */
static inline void guest_negotiate(struct guest *g, uint64_t features)
{
    guest_set_status(g, 0);
    guest_set_status(g, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER);
    for (unsigned word = 0; word < 2; word++) {
        guest_write(g, VIRTIO_PCI_DRIVER_FEATURE_SELECT, 4, word);
        guest_write(g, VIRTIO_PCI_DRIVER_FEATURE, 4, features >> (word * 32) & 0xffffffff);
    }
    guest_set_status(g, GUEST_STATUS_READY);
}

static inline void guest_place_queue(struct guest *g, unsigned index, unsigned size)
{
    struct guest_queue *q = &g->queue[index];
    uint64_t base = GUEST_RINGS + index * GUEST_RING_STRIDE;
    *q = (struct guest_queue) {.index = index,
                               .size = size,
                               .descriptors = base,
                               .avail = base + GUEST_AVAIL,
                               .used = base + GUEST_USED};
    assert_int_equal(guest_memory_fill(g->machine->memory, gpa(base), 0, GUEST_RING_STRIDE), 0);
    guest_write(g, VIRTIO_PCI_QUEUE_SELECT, 2, index);
    guest_write(g, VIRTIO_PCI_QUEUE_SIZE, 2, size);
    guest_write(g, VIRTIO_PCI_QUEUE_MSIX_VECTOR, 2, index);
    guest_write(g, VIRTIO_PCI_QUEUE_DESC, 4, q->descriptors & 0xffffffff);
    guest_write(g, VIRTIO_PCI_QUEUE_DESC + 4, 4, q->descriptors >> 32);
    guest_write(g, VIRTIO_PCI_QUEUE_DRIVER, 8, q->avail);
    guest_write(g, VIRTIO_PCI_QUEUE_DEVICE, 8, q->used);
}

static inline void guest_setup_queue(struct guest *g, unsigned index, unsigned size)
{
    guest_place_queue(g, index, size);
    guest_write(g, VIRTIO_PCI_QUEUE_ENABLE, 2, 1);
    assert_int_equal(guest_read(g, VIRTIO_PCI_QUEUE_ENABLE, 2), 1);
}

/* A whole driver start with `queues` queues of 16 entries. */
static inline void guest_start(struct guest *g, uint64_t features, unsigned queues)
{
    guest_enable(g);
    guest_negotiate(g, features | VIRTIO_F_VERSION_1);
    assert_int_equal(guest_status(g), GUEST_STATUS_READY);
    for (unsigned i = 0; i < queues; i++)
        guest_setup_queue(g, i, 16);
    guest_set_status(g, GUEST_STATUS_READY | VIRTIO_STATUS_DRIVER_OK);
}

/* --- memory and rings --- */

static inline void guest_put(struct guest *g, uint64_t at, const void *data, size_t size)
{
    assert_int_equal(guest_memory_write(g->machine->memory, gpa(at), data, size), 0);
}

static inline void guest_get(struct guest *g, uint64_t at, void *data, size_t size)
{
    assert_int_equal(guest_memory_read(g->machine->memory, gpa(at), data, size), 0);
}

static inline uint16_t guest_get16(struct guest *g, uint64_t at)
{
    uint16_t value;
    guest_get(g, at, &value, sizeof value);
    return value;
}

static inline void guest_put16(struct guest *g, uint64_t at, uint16_t value)
{
    guest_put(g, at, &value, sizeof value);
}

struct guest_desc {
    uint64_t address;
    uint32_t length;
    uint16_t flags, next;
};

static inline void guest_set_desc(struct guest *g, uint64_t table, unsigned index,
                                  struct guest_desc desc)
{
    uint8_t bytes[16];
    store_le64(bytes, desc.address);
    store_le32(bytes + 8, desc.length);
    store_le16(bytes + 12, desc.flags);
    store_le16(bytes + 14, desc.next);
    guest_put(g, table + index * 16, bytes, sizeof bytes);
}

/* Makes the chain that starts at head available, without a notify. */
static inline void guest_offer(struct guest *g, unsigned queue, uint16_t head)
{
    struct guest_queue *q = &g->queue[queue];
    guest_put16(g, q->avail + 4 + 2 * (q->avail_idx % q->size), head);
    q->avail_idx++;
    guest_put16(g, q->avail + 2, q->avail_idx);
}

struct guest_part {
    uint64_t address;
    uint32_t length;
    bool write;
};

/* Chains the parts in the next descriptors and offers them; returns the head. */
static inline uint16_t guest_add(struct guest *g, unsigned queue, const struct guest_part *parts,
                                 unsigned count)
{
    struct guest_queue *q = &g->queue[queue];
    uint16_t head = (uint16_t)(q->next_desc % q->size);
    for (unsigned i = 0; i < count; i++) {
        unsigned index = q->next_desc++ % q->size;
        bool last = i + 1 == count;
        guest_set_desc(g, q->descriptors, index,
                       (struct guest_desc) {
                           parts[i].address, parts[i].length,
                           (uint16_t)((parts[i].write ? DESC_WRITE : 0) | (last ? 0 : DESC_NEXT)),
                           (uint16_t)(last ? 0 : q->next_desc % q->size)});
    }
    guest_offer(g, queue, head);
    return head;
}

static inline void guest_kick(struct guest *g, unsigned queue)
{
    guest_write(g, VIRTIO_PCI_NOTIFY + queue * VIRTIO_PCI_NOTIFY_FACTOR, 2, queue);
}

static inline uint16_t guest_used_idx(struct guest *g, unsigned queue)
{
    return guest_get16(g, g->queue[queue].used + 2);
}

/* Takes the next used entry; false when there is none. */
static inline bool guest_take_used(struct guest *g, unsigned queue, uint32_t *head,
                                   uint32_t *written)
{
    struct guest_queue *q = &g->queue[queue];
    uint32_t entry[2];
    if (guest_used_idx(g, queue) == q->used_idx)
        return false;
    guest_get(g, q->used + 4 + 8 * (q->used_idx % q->size), entry, sizeof entry);
    q->used_idx++;
    *head = entry[0];
    *written = entry[1];
    return true;
}

/* Lets the loop serve what was posted to it. */
static inline void guest_run_loop(struct guest *g)
{
    for (int i = 0; i < 4; i++)
        assert_true(loop_run_once(g->machine->loop, 0) >= 0);
}

#endif
