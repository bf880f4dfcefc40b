/*
 * Fuzz target: rings, requests and registers of every virtio device, with backends that hold, fail
 * and send.
 *
 * The input chooses a device and how its driver starts it, and then what driver, backend and time
 * do. Then each device's state must survive being saved and loaded.
 */
#include "pc.h"

#include "device/virtio/virtio.h"
#include "device/virtio/virtio_pci.h"

/* Rings of queue q, and buffers, in the guest's RAM. */
#define RINGS       0x100000u
#define RING_STRIDE 0x4000u
#define AVAIL       0x1000u
#define USED        0x2000u
#define BUFFERS     0x200000u
#define QUEUES      4u

struct driver {
    struct pc *pc;
    struct machine *machine;
    unsigned slot;
    uint64_t bar;
    uint16_t size[QUEUES], avail[QUEUES], next[QUEUES];
};

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    pc_quiet();
    return 0;
}

static void put(struct driver *d, uint64_t at, const void *data, size_t size)
{
    if (guest_memory_write(d->machine->memory, gpa(at), data, size))
        return; /* not RAM */
}

static void reg(struct driver *d, unsigned offset, unsigned size, uint64_t value)
{
    bus_write(d->machine->mmio, d->bar + offset, size, value);
}

static uint64_t ring_of(unsigned queue)
{
    return RINGS + queue * RING_STRIDE;
}

/* --- start --- */

static void start_queue(struct driver *d, struct fuzz_input *in, unsigned queue)
{
    uint8_t how = fuzz_u8(in);
    uint64_t ring = ring_of(queue);

    d->size[queue] = how < 0xf0 ? (uint16_t)(1u << (how & 7)) : fuzz_u16(in);
    reg(d, VIRTIO_PCI_QUEUE_SELECT, 2, queue);
    reg(d, VIRTIO_PCI_QUEUE_SIZE, 2, d->size[queue]);
    reg(d, VIRTIO_PCI_QUEUE_MSIX_VECTOR, 2, how & 8 ? queue : VIRTIO_PCI_NO_VECTOR);
    /* Some lie badly, or at the end of RAM. */
    if ((how & 0x70) == 0x70)
        ring = PC_RAM - (uint64_t)fuzz_u8(in) * 16;
    reg(d, VIRTIO_PCI_QUEUE_DESC, 8, ring);
    reg(d, VIRTIO_PCI_QUEUE_DRIVER, 8, ring + AVAIL);
    reg(d, VIRTIO_PCI_QUEUE_DEVICE, 8, ring + USED);
    reg(d, VIRTIO_PCI_QUEUE_ENABLE, 2, 1);
    if (!d->size[queue])
        d->size[queue] = 1;
}

static void negotiate(struct driver *d, uint64_t features)
{
    reg(d, VIRTIO_PCI_DEVICE_STATUS, 1, 0);
    reg(d, VIRTIO_PCI_DEVICE_STATUS, 1, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER);
    for (unsigned word = 0; word < 2; word++) {
        reg(d, VIRTIO_PCI_DEVICE_FEATURE_SELECT, 4, word);
        uint64_t offered = bus_read(d->machine->mmio, d->bar + VIRTIO_PCI_DEVICE_FEATURE, 4);
        reg(d, VIRTIO_PCI_DRIVER_FEATURE_SELECT, 4, word);
        reg(d, VIRTIO_PCI_DRIVER_FEATURE, 4, offered & (word ? 0xffffffff : features));
    }
    reg(d, VIRTIO_PCI_DEVICE_STATUS, 1, 0xb);
}

static void start(struct driver *d, struct fuzz_input *in)
{
    static const uint8_t slots[] = {PC_SLOT_RNG, PC_SLOT_CONSOLE, PC_SLOT_NET, PC_SLOT_DISK};

    d->slot = slots[fuzz_u8(in) % ARRAY_COUNT(slots)];
    pc_enable(d->pc, d->slot);
    d->bar = pc_bar(d->pc, d->slot, VIRTIO_PCI_BAR);
    negotiate(d, fuzz_u32(in));
    for (unsigned i = 0; i < QUEUES; i++)
        start_queue(d, in, i);
    reg(d, VIRTIO_PCI_DEVICE_STATUS, 1, 0xf);
}

/* --- what a driver does --- */

struct part {
    uint64_t address;
    uint32_t length;
    uint16_t flags, next;
};

static void put_descriptor(struct driver *d, uint64_t table, unsigned index, const struct part *p)
{
    uint8_t bytes[16];

    store_le64(bytes, p->address);
    store_le32(bytes + 8, p->length);
    store_le16(bytes + 12, p->flags);
    store_le16(bytes + 14, p->next);
    put(d, table + index * 16, bytes, sizeof bytes);
}

static uint64_t an_address(struct fuzz_input *in)
{
    uint8_t choice = fuzz_u8(in);

    if (choice < 0xc0)
        return BUFFERS + (choice & 0x3f) * 0x200;
    if (choice < 0xe0)
        return PC_RAM - (choice & 0x1f) * 0x40;
    return choice < 0xf0 ? ring_of(choice & 3) + fuzz_u16(in) : fuzz_u64(in);
}

/* A descriptor of its own, flags and all from the input. */
static void any_descriptor(struct driver *d, struct fuzz_input *in)
{
    uint8_t where = fuzz_u8(in);
    uint64_t table = where & 0x80 ? BUFFERS + (where & 0x3f) * 0x200u : ring_of(where & 3);
    struct part p = {.address = an_address(in), .length = fuzz_u16(in)};

    if (fuzz_u8(in) & 1)
        p.length = fuzz_u32(in);
    p.flags = fuzz_u8(in);
    p.next = fuzz_u8(in);
    put_descriptor(d, table, where >> 2 & 15, &p);
}

static void offer(struct driver *d, unsigned queue, uint16_t head)
{
    uint64_t avail = ring_of(queue) + AVAIL;
    uint8_t bytes[2];

    store_le16(bytes, head);
    put(d, avail + 4 + 2u * (d->avail[queue] % d->size[queue]), bytes, 2);
    store_le16(bytes, ++d->avail[queue]);
    put(d, avail + 2, bytes, 2);
}

static void kick(struct driver *d, unsigned queue)
{
    reg(d, VIRTIO_PCI_NOTIFY + queue * VIRTIO_PCI_NOTIFY_FACTOR, 2, queue);
}

/* A chain as it should be: readable parts, then writable ones; perhaps in an indirect table. */
static void request(struct driver *d, struct fuzz_input *in)
{
    uint8_t how = fuzz_u8(in), parts = fuzz_u8(in);
    unsigned queue = how & 3, readable = parts & 3, count = readable + (parts >> 2 & 3);
    bool indirect = how & 0x40;
    uint64_t table = indirect ? BUFFERS + 0x7000 : ring_of(queue);
    uint16_t head = (uint16_t)(d->next[queue] % d->size[queue]);

    for (unsigned i = 0; i < count; i++) {
        unsigned index = indirect ? i : d->next[queue]++ % d->size[queue];
        uint16_t next = (uint16_t)(indirect ? i + 1 : d->next[queue] % d->size[queue]);
        struct part p = {.address = an_address(in), .length = fuzz_u16(in), .next = next};
        p.flags = (uint16_t)((i >= readable ? 2 : 0) | (i + 1 < count ? 1 : 0));
        put_descriptor(d, table, index, &p);
    }
    if (indirect) {
        d->next[queue]++;
        put_descriptor(d, ring_of(queue), head,
                       &(struct part) {.address = table, .length = count * 16, .flags = 4});
    }
    offer(d, queue, head);
    if (how & 0x80)
        kick(d, queue);
}

/* virtio-blk: header, data, status. */
static void disk_request(struct driver *d, struct fuzz_input *in)
{
    uint8_t header[16] = {0}, choice = fuzz_u8(in);
    uint64_t at = BUFFERS + 0x8000 + (choice & 0xf) * 0x1000u;
    unsigned queue = choice >> 4 & 1;
    uint16_t head = (uint16_t)(d->next[queue] % d->size[queue]);
    uint32_t type = fuzz_u8(in) % 16, length = fuzz_u8(in) * 64u;

    store_le32(header, type);
    store_le64(header + 8, choice & 0x20 ? fuzz_u64(in) : fuzz_u8(in) % 66);
    put(d, at, header, sizeof header);
    if (type == 11 || type == 13) { /* discard, write zeroes: segments */
        uint8_t segment[32];
        fuzz_take(in, segment, sizeof segment);
        put(d, at + 0x100, segment, sizeof segment);
        length = choice & 0x40 ? 16 : 32;
    }
    struct part parts[3] = {{at, 16, 1, 0}, {at + 0x100, length, 1, 0}, {at + 0x80, 1, 2, 0}};
    parts[1].flags |= type == 0 || type == 8 ? 2 : 0;
    for (unsigned i = 0; i < 3; i++) {
        unsigned index = d->next[queue]++ % d->size[queue];
        parts[i].next = (uint16_t)(d->next[queue] % d->size[queue]);
        put_descriptor(d, ring_of(queue), index, &parts[i]);
    }
    offer(d, queue, head);
    kick(d, queue);
}

static void any_memory(struct driver *d, struct fuzz_input *in)
{
    uint8_t bytes[32];
    size_t length = fuzz_u8(in) % sizeof bytes;
    uint64_t at = an_address(in);

    fuzz_take(in, bytes, length);
    put(d, at, bytes, length);
}

static void receive(struct driver *d, struct fuzz_input *in)
{
    uint8_t frame[2048];
    size_t length = fuzz_u16(in) % sizeof frame, own = fuzz_u8(in) % 64;

    memset(frame, 0xa5, sizeof frame);
    fuzz_take(in, frame, own);
    pc_receive(d->pc, frame, length);
}

static void type(struct driver *d, struct fuzz_input *in)
{
    uint8_t text[64];
    size_t length = fuzz_u8(in) % sizeof text;
    fuzz_take(in, text, length);
    pc_type(d->pc, text, length);
}

static void by_driver(struct driver *d, struct fuzz_input *in, unsigned what)
{
    unsigned queue;

    switch (what) {
    case 0:
        any_descriptor(d, in);
        break;
    case 1:
        queue = fuzz_u8(in) % QUEUES;
        offer(d, queue, fuzz_u8(in));
        break;
    case 2:
        kick(d, fuzz_u8(in) % QUEUES);
        break;
    case 3:
        pc_access(d->pc, in, d->bar + (fuzz_u8(in) & 0x3f));
        break;
    case 4:
        pc_access(d->pc, in, d->bar + (fuzz_u16(in) & 0x3fff));
        break;
    case 5:
        any_memory(d, in);
        break;
    case 6:
        request(d, in);
        break;
    case 7:
        disk_request(d, in);
        break;
    case 8:
        pc_access(d->pc, in, pc_ecam(d->slot, fuzz_u8(in)));
        break;
    default:
        pc_access(d->pc, in, pc_bar(d->pc, d->slot, VIRTIO_PCI_MSIX_BAR) + (fuzz_u16(in) & 0xfff));
        break;
    }
}

static void one(struct driver *d, struct fuzz_input *in)
{
    unsigned what = fuzz_u8(in) % 18;

    switch (what) {
    case 10:
        pc_run_loop(d->pc);
        break;
    case 11:
        pc_complete(d->pc);
        break;
    case 12:
        pc_set_mood(d->pc, fuzz_u8(in));
        break;
    case 13:
        receive(d, in);
        break;
    case 14:
        type(d, in);
        break;
    case 15:
        pc_advance(d->pc, (uint64_t)fuzz_u16(in) << 12);
        break;
    case 16:
        request(d, in);
        break;
    case 17:
        start(d, in);
        break;
    default:
        by_driver(d, in, what);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};
    struct driver d = {.pc = pc_create(PC_VIRTIO)};

    d.machine = pc_machine(d.pc);
    start(&d, &in);
    for (unsigned i = 0; i < 200 && in.left; i++)
        one(&d, &in);
    pc_check_states(d.pc);
    pc_destroy(d.pc);
    return 0;
}
