/* device/virtio/virtio_blk over PCI, with a disk in memory that completes at once, later, or from
 * another thread. */
#include "virtio_guest.h"

#include <errno.h>

#include "backend/disk/disk.h"
#include "device/virtio/virtio_blk.h"

#define DISK_SECTORS 64

/* The backend, in place of backend/disk. */
struct disk {
    uint8_t data[DISK_SECTORS * 512];
    uint64_t told_size; /* 0: that of data */
    bool read_only;
    enum { AT_ONCE, HOLD, THREAD } mode;
    int result;
    struct disk_request *held[64];
    unsigned held_count, flushes;
    pthread_t thread[64];
    unsigned thread_count;
};

void disk_info(const struct disk *disk, struct disk_info *out)
{
    *out = (struct disk_info) {.size = disk->told_size ? disk->told_size : sizeof disk->data,
                               .read_only = disk->read_only,
                               .can_discard = true,
                               .block_size = 4096,
                               .io_name = "memory"};
}

static void disk_run(struct disk *disk, struct disk_request *request)
{
    uint8_t *at = disk->data + request->offset;
    switch (request->op) {
    case DISK_READ:
    case DISK_WRITE:
        for (unsigned i = 0; i < request->iov_count && !disk->result; i++) {
            struct iovec *iov = &request->iov[i];
            if (request->op == DISK_READ)
                memcpy(iov->iov_base, at, iov->iov_len);
            else
                memcpy(at, iov->iov_base, iov->iov_len);
            at += iov->iov_len;
        }
        break;
    case DISK_FLUSH:
        disk->flushes++;
        break;
    default:
        memset(at, 0, request->length);
    }
    request->length = 0; /* the real one counts it down too */
    request->done(request, disk->result);
}

static void *disk_thread(void *context)
{
    struct disk_request *request = context;
    disk_run(request->backend[0], request);
    return NULL;
}

void disk_submit(struct disk *disk, struct disk_request *request)
{
    request->backend[0] = disk;
    if (disk->mode == AT_ONCE)
        disk_run(disk, request);
    else if (disk->mode == HOLD)
        disk->held[disk->held_count++] = request;
    else
        assert_int_equal(
            pthread_create(&disk->thread[disk->thread_count++], NULL, disk_thread, request), 0);
}

static void disk_release(struct disk *disk)
{
    unsigned count = disk->held_count;
    disk->held_count = 0;
    for (unsigned i = 0; i < count; i++)
        disk_run(disk, disk->held[i]);
}

struct fixture {
    struct guest guest;
    struct disk disk;
};

#define HEADER GUEST_BUFFERS
#define DATA   (GUEST_BUFFERS + 0x1000)
#define STATUS (GUEST_BUFFERS + 0x800)

static struct device *add_blk(struct fixture *f)
{
    const struct virtio_pci_config pci = {f->guest.host, f->guest.slot};
    const struct virtio_blk_config config = {.transport = {virtio_pci_attach, &pci},
                                             .disk = &f->disk,
                                             .serial = "parat-disk-1",
                                             .queue_count = 2};
    return rig_add(f->guest.machine, &virtio_blk_class, &config);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    guest_create(&f->guest, 3);
    for (size_t i = 0; i < sizeof f->disk.data; i++)
        f->disk.data[i] = (uint8_t)(i / 512 + 1);
    f->guest.device = add_blk(f);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    guest_destroy(&f->guest);
    free(f);
    return 0;
}

static void put_header(struct fixture *f, uint32_t type, uint64_t sector)
{
    uint8_t bytes[16] = {0};
    store_le32(bytes, type);
    store_le64(bytes + 8, sector);
    guest_put(&f->guest, HEADER, bytes, sizeof bytes);
    guest_put(&f->guest, STATUS, &(uint8_t) {0xee}, 1);
}

/* Header, data, status on queue 0. */
static void offer(struct fixture *f, uint32_t type, uint64_t sector, uint32_t length)
{
    bool read = type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_GET_ID;
    put_header(f, type, sector);
    struct guest_part parts[3] = {{HEADER, 16, false}, {DATA, length, read}, {STATUS, 1, true}};
    if (!length)
        parts[1] = parts[2];
    guest_add(&f->guest, 0, parts, length ? 3 : 2);
    guest_kick(&f->guest, 0);
}

static uint8_t status_byte(struct fixture *f)
{
    uint8_t status;
    guest_get(&f->guest, STATUS, &status, 1);
    return status;
}

/* Asks that exactly one request came back; returns its status, and used.len. */
static uint8_t take_one(struct fixture *f, uint32_t *written)
{
    uint32_t head, again[2];
    assert_true(guest_take_used(&f->guest, 0, &head, written));
    assert_false(guest_take_used(&f->guest, 0, &again[0], &again[1]));
    return status_byte(f);
}

static uint8_t request(struct fixture *f, uint32_t type, uint64_t sector, uint32_t length)
{
    uint32_t written;
    offer(f, type, sector, length);
    return take_one(f, &written);
}

static void test_config_space_tells_the_disk(void **state)
{
    struct fixture *f = *state;
    struct guest *g = &f->guest;
    guest_enable(g);
    assert_int_equal(guest_config_read(g, PCI_VENDOR_ID, 2), 0x1af4);
    assert_int_equal(guest_config_read(g, PCI_DEVICE_ID, 2), 0x1042);
    assert_int_equal(guest_read(g, VIRTIO_PCI_DEVICE, 4), DISK_SECTORS);
    assert_int_equal(guest_read(g, VIRTIO_PCI_DEVICE + 34, 2), 2);
    assert_int_equal(guest_read(g, VIRTIO_PCI_DEVICE + 24, 1), 3); /* 4096-byte blocks */
    assert_true(guest_offered(g) & VIRTIO_BLK_F_MQ);
    assert_false(guest_offered(g) & VIRTIO_BLK_F_RO);
}

static void test_read_and_write_reach_the_disk(void **state)
{
    struct fixture *f = *state;
    uint8_t bytes[1024];
    uint32_t written;
    guest_start(&f->guest, VIRTIO_BLK_F_FLUSH, 2);
    offer(f, VIRTIO_BLK_T_IN, 5, 1024);
    assert_int_equal(take_one(f, &written), VIRTIO_BLK_S_OK);
    assert_int_equal(written, 1025);
    guest_get(&f->guest, DATA, bytes, sizeof bytes);
    assert_memory_equal(bytes, f->disk.data + 5 * 512, sizeof bytes);

    memset(bytes, 0xab, sizeof bytes);
    guest_put(&f->guest, DATA, bytes, sizeof bytes);
    assert_int_equal(request(f, VIRTIO_BLK_T_OUT, 62, 1024), VIRTIO_BLK_S_OK);
    assert_memory_equal(bytes, f->disk.data + 62 * 512, sizeof bytes);
    assert_int_equal(f->disk.flushes, 0);
    assert_int_equal(request(f, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
    assert_int_equal(f->disk.flushes, 1);
}

static void test_write_without_flush_feature_is_write_through(void **state)
{
    struct fixture *f = *state;
    guest_start(&f->guest, 0, 1);
    assert_int_equal(request(f, VIRTIO_BLK_T_OUT, 0, 512), VIRTIO_BLK_S_OK);
    assert_int_equal(f->disk.flushes, 1);
}

static void test_serial_number(void **state)
{
    struct fixture *f = *state;
    uint8_t id[20] = "parat-disk-1", got[20];
    guest_start(&f->guest, 0, 1);
    assert_int_equal(request(f, VIRTIO_BLK_T_GET_ID, 0, 20), VIRTIO_BLK_S_OK);
    guest_get(&f->guest, DATA, got, sizeof got);
    assert_memory_equal(got, id, sizeof id);
}

static void test_bounds_and_unknown_types_are_refused(void **state)
{
    struct fixture *f = *state;
    guest_start(&f->guest, 0, 1);
    assert_int_equal(request(f, VIRTIO_BLK_T_IN, DISK_SECTORS, 512), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(f, VIRTIO_BLK_T_IN, DISK_SECTORS - 1, 1024), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(f, VIRTIO_BLK_T_IN, ~0ull, 512), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(f, VIRTIO_BLK_T_OUT, 1ull << 55, 512), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(f, VIRTIO_BLK_T_IN, 0, 100), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(f, 99, 0, 0), VIRTIO_BLK_S_UNSUPP);
    assert_int_equal(guest_status(&f->guest) & VIRTIO_STATUS_NEEDS_RESET, 0);
}

static void put_range(struct fixture *f, uint64_t sector, uint32_t count, uint32_t flags)
{
    uint8_t bytes[16];
    store_le64(bytes, sector);
    store_le32(bytes + 8, count);
    store_le32(bytes + 12, flags);
    guest_put(&f->guest, DATA, bytes, sizeof bytes);
}

static void test_discard_and_write_zeroes(void **state)
{
    struct fixture *f = *state;
    uint8_t zero[512] = {0};
    guest_start(&f->guest, VIRTIO_BLK_F_DISCARD | VIRTIO_BLK_F_WRITE_ZEROES, 1);
    put_range(f, 4, 1, 1);
    assert_int_equal(request(f, VIRTIO_BLK_T_WRITE_ZEROES, 0, 16), VIRTIO_BLK_S_OK);
    assert_memory_equal(f->disk.data + 4 * 512, zero, 512);
    put_range(f, 6, 1, 0);
    assert_int_equal(request(f, VIRTIO_BLK_T_DISCARD, 0, 16), VIRTIO_BLK_S_OK);
    assert_memory_equal(f->disk.data + 6 * 512, zero, 512);
    put_range(f, 6, 1, 1);
    assert_int_equal(request(f, VIRTIO_BLK_T_DISCARD, 0, 16), VIRTIO_BLK_S_UNSUPP);
    put_range(f, 6, 1, 2);
    assert_int_equal(request(f, VIRTIO_BLK_T_WRITE_ZEROES, 0, 16), VIRTIO_BLK_S_UNSUPP);
    put_range(f, DISK_SECTORS - 1, 2, 0);
    assert_int_equal(request(f, VIRTIO_BLK_T_DISCARD, 0, 16), VIRTIO_BLK_S_IOERR);
    put_range(f, ~0ull, 0xffffffff, 0);
    assert_int_equal(request(f, VIRTIO_BLK_T_WRITE_ZEROES, 0, 16), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(f, VIRTIO_BLK_T_DISCARD, 0, 8), VIRTIO_BLK_S_IOERR);
}

static void test_host_error_becomes_ioerr(void **state)
{
    struct fixture *f = *state;
    guest_start(&f->guest, 0, 1);
    f->disk.result = -ENOSPC;
    assert_int_equal(request(f, VIRTIO_BLK_T_OUT, 0, 512), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(f, VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_IOERR);
}

static void test_read_only_disk_refuses_writes(void **state)
{
    struct fixture *f = *state;
    f->disk.read_only = true;
    f->guest.slot = 4;
    add_blk(f);
    guest_enable(&f->guest);
    assert_true(guest_offered(&f->guest) & VIRTIO_BLK_F_RO);
    guest_start(&f->guest, VIRTIO_BLK_F_RO, 1);
    assert_int_equal(request(f, VIRTIO_BLK_T_OUT, 0, 512), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(f, VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_OK);
}

static void test_request_without_status_byte_needs_reset(void **state)
{
    struct fixture *f = *state;
    guest_start(&f->guest, 0, 1);
    put_header(f, VIRTIO_BLK_T_FLUSH, 0);
    guest_add(&f->guest, 0, &(struct guest_part) {HEADER, 16, false}, 1);
    guest_kick(&f->guest, 0);
    assert_true(guest_status(&f->guest) & VIRTIO_STATUS_NEEDS_RESET);
    assert_int_equal(guest_used_idx(&f->guest, 0), 0);
}

static void test_completion_from_other_threads(void **state)
{
    struct fixture *f = *state;
    struct guest *g = &f->guest;
    guest_start(g, VIRTIO_BLK_F_FLUSH, 1);
    f->disk.mode = THREAD;
    for (unsigned i = 0; i < 40; i++) {
        uint32_t head, written;
        offer(f, VIRTIO_BLK_T_IN, i, 512);
        g->device->class->quiesce(g->device);
        assert_true(guest_take_used(g, 0, &head, &written));
        assert_int_equal(written, 513);
    }
    for (unsigned i = 0; i < f->disk.thread_count; i++)
        pthread_join(f->disk.thread[i], NULL);
}

static void test_driver_reset_waits_for_requests_in_flight(void **state)
{
    struct fixture *f = *state;
    struct guest *g = &f->guest;
    guest_start(g, 0, 1);
    f->disk.mode = HOLD;
    offer(f, VIRTIO_BLK_T_IN, 1, 512);
    guest_set_status(g, 0);
    assert_int_not_equal(guest_status(g), 0); /* not before the disk is through with our memory */
    disk_release(&f->disk);
    assert_int_equal(guest_status(g), 0);
    assert_int_equal(guest_used_idx(g, 0), 0); /* the old ring was left alone */
    f->disk.mode = AT_ONCE;
    guest_start(g, 0, 1);
    assert_int_equal(request(f, VIRTIO_BLK_T_IN, 1, 512), VIRTIO_BLK_S_OK);
}

static void test_more_in_flight_than_the_queue_holds_needs_reset(void **state)
{
    struct fixture *f = *state;
    struct guest *g = &f->guest;
    guest_start(g, 0, 1);
    f->disk.mode = HOLD;
    put_header(f, VIRTIO_BLK_T_FLUSH, 0);
    const struct guest_part parts[] = {{HEADER, 16, false}, {STATUS, 1, true}};
    uint16_t head = guest_add(g, 0, parts, 2);
    guest_kick(g, 0);
    for (unsigned i = 1; i < 100; i++) { /* the same head again and again */
        guest_offer(g, 0, head);
        guest_kick(g, 0);
    }
    assert_int_equal(f->disk.held_count, 16);
    assert_true(guest_status(g) & VIRTIO_STATUS_NEEDS_RESET);
    disk_release(&f->disk);
}

/* Sixteen chains of 1 GiB each, say, would keep a pause or the exit waiting for as many. */
static void test_bytes_in_flight_are_bounded(void **state)
{
    struct fixture *f = *state;
    struct guest *g = &f->guest;
    guest_destroy(g);
    f->disk = (struct disk) {.told_size = 1ull << 30, .mode = HOLD, .result = -EIO};
    guest_create(g, 3);
    g->device = add_blk(f);
    guest_start(g, 0, 1);
    put_header(f, VIRTIO_BLK_T_OUT, 0);
    struct guest_part parts[15] = {[0] = {HEADER, 16, false}, [14] = {STATUS, 1, true}};
    for (unsigned i = 1; i < 14; i++) /* 39 MiB in all */
        parts[i] = (struct guest_part) {0x200000, 3u << 20, false};
    uint16_t head = guest_add(g, 0, parts, ARRAY_COUNT(parts));
    for (unsigned i = 1; i < 5; i++)
        guest_offer(g, 0, head);
    guest_kick(g, 0);
    unsigned held[4];
    for (unsigned i = 0; i < ARRAY_COUNT(held); i++) {
        held[i] = f->disk.held_count;
        disk_release(&f->disk);
        guest_run_loop(g); /* goes on by itself */
    }
    assert_int_equal(held[0], 2);
    assert_int_equal(held[1], 2);
    assert_int_equal(held[2], 1);
    assert_int_equal(held[3], 0);
    assert_int_equal(guest_used_idx(g, 0), 5);
    assert_int_equal(status_byte(f), VIRTIO_BLK_S_IOERR);
}

static void test_state_survives_a_round_trip(void **state)
{
    struct fixture *f = *state;
    struct guest *g = &f->guest;
    guest_start(g, VIRTIO_BLK_F_FLUSH | VIRTIO_F_EVENT_IDX, 2);
    guest_enable_msix(g, 3);
    request(f, VIRTIO_BLK_T_IN, 3, 512);
    guest_write(g, VIRTIO_PCI_QUEUE_SELECT, 2, 1);

    struct fixture *other;
    void *other_state;
    setup(&other_state);
    other = other_state;
    rig_assert_round_trip(g->device, other->guest.device);
    /* The other machine goes on where this one was: same rings, same place in them. */
    uint8_t *rings = malloc(GUEST_RING_STRIDE);
    guest_get(g, GUEST_RINGS, rings, GUEST_RING_STRIDE);
    guest_put(&other->guest, GUEST_RINGS, rings, GUEST_RING_STRIDE);
    free(rings);
    struct guest *o = &other->guest;
    struct machine *machine = o->machine;
    struct pci_host *host = o->host;
    struct device *device = o->device;
    *o = *g;
    o->machine = machine;
    o->host = host;
    o->device = device;
    guest_put16(o, o->queue[0].avail + 4 + 2 * 16, o->queue[0].used_idx); /* used_event */
    assert_int_equal(request(other, VIRTIO_BLK_T_IN, 7, 512), VIRTIO_BLK_S_OK);
    assert_int_equal(guest_msi_count(o), 1);
    teardown(&other_state);
}

static void test_damaged_state_is_refused(void **state)
{
    struct fixture *f = *state;
    struct guest *g = &f->guest;
    struct state_writer w;
    guest_start(g, 0, 1);
    struct virtio_device *virtio = virtio_of(g->device);
    virtio->queue[0].used = gpa(3); /* not aligned */
    rig_save(g->device, &w);
    assert_int_equal(rig_load(g->device, w.data, w.size), -EINVAL);
    g->device->class->reset(g->device);
    state_writer_free(&w);
}

static void test_garbage_in_all_registers(void **state)
{
    struct fixture *f = *state;
    struct guest *g = &f->guest;
    guest_start(g, 0, 2);
    guest_enable_msix(g, 3);
    uint64_t seed = 7;
    for (unsigned i = 0; i < 64; i++) { /* garbage in the rings too */
        uint64_t bytes = rig_random(&seed);
        guest_put(g, GUEST_RINGS + rig_random(&seed) % GUEST_RING_STRIDE, &bytes, 8);
    }
    rig_fuzz(g->machine, g->machine->mmio, g->bar, VIRTIO_PCI_BAR_SIZE, 50000);
    rig_fuzz(g->machine, g->machine->mmio, g->msix_bar, PCI_MSIX_BAR_SIZE, 20000);
    rig_fuzz(g->machine, g->machine->mmio, guest_ecam(g, 0), 4096, 50000);
    guest_run_loop(g);
    g->device->class->reset(g->device);
    guest_start(g, 0, 1);
    assert_int_equal(request(f, VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_OK);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_config_space_tells_the_disk),
        TEST(test_read_and_write_reach_the_disk),
        TEST(test_write_without_flush_feature_is_write_through),
        TEST(test_serial_number),
        TEST(test_bounds_and_unknown_types_are_refused),
        TEST(test_discard_and_write_zeroes),
        TEST(test_host_error_becomes_ioerr),
        TEST(test_read_only_disk_refuses_writes),
        TEST(test_request_without_status_byte_needs_reset),
        TEST(test_completion_from_other_threads),
        TEST(test_driver_reset_waits_for_requests_in_flight),
        TEST(test_more_in_flight_than_the_queue_holds_needs_reset),
        TEST(test_bytes_in_flight_are_bounded),
        TEST(test_state_survives_a_round_trip),
        TEST(test_damaged_state_is_refused),
        TEST(test_garbage_in_all_registers),
    };
    return cmocka_run_group_tests_name("virtio_blk", tests, NULL, NULL);
}
