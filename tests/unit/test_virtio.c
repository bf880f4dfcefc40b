/*
 * device/virtio/virtqueue, virtio and virtio_pci with a device that takes each chain and gives it
 * back: features, status, every way a ring can be bad, notification suppression, interrupts.
 */
#include "virtio_guest.h"

#include <errno.h>
#include <unistd.h>

struct echo {
    struct virtio_device virtio;
    unsigned taken, starts, resets;
    bool hold; /* take nothing */
    struct virtqueue_chain chain;
};

static struct echo *echo_of(struct virtio_device *virtio)
{
    return container_of(virtio, struct echo, virtio);
}

static bool echo_notify(struct virtio_device *virtio, struct virtqueue *queue)
{
    struct echo *e = echo_of(virtio);
    for (unsigned i = 0; i < queue->size; i++) {
        if (e->hold)
            return false;
        while (!virtqueue_pop(queue, &e->chain))
            if (!virtqueue_want_notify(queue))
                return false;
        e->taken++;
        virtqueue_push(queue, e->chain.head, (uint32_t)e->chain.writable_size);
    }
    return true;
}

static void echo_start(struct virtio_device *virtio)
{
    echo_of(virtio)->starts++;
}

static void echo_reset(struct virtio_device *virtio)
{
    echo_of(virtio)->resets++;
}

static void echo_config_write(struct virtio_device *virtio, unsigned offset, unsigned size,
                              uint32_t value)
{
    memcpy(virtio->config + offset, &value, size);
}

static const struct virtio_ops echo_ops = {
    .id = 40,
    .start = echo_start,
    .reset = echo_reset,
    .notify = echo_notify,
    .config_write = echo_config_write,
};

#define ECHO_FEATURE BIT(3)

static int echo_create(struct device *device, const void *config, struct err *err)
{
    const struct virtio_attach *attach = config;
    const struct virtio_setup setup = {.ops = &echo_ops,
                                       .features = ECHO_FEATURE,
                                       .queue_count = 2,
                                       .config_size = 8,
                                       .attach = attach};
    return virtio_init(virtio_of(device), &setup, err);
}

static void echo_destroy(struct device *device)
{
    virtio_destroy(virtio_of(device));
}

static const struct device_class echo_class = {
    .name = "echo",
    .size = sizeof(struct echo),
    .create = echo_create,
    .reset = virtio_class_reset,
    .save = virtio_class_save,
    .load = virtio_class_load,
    .destroy = echo_destroy,
};

static int setup(void **state)
{
    struct guest *g = calloc(1, sizeof *g);
    guest_create(g, 6);
    const struct virtio_pci_config pci = {g->host, 6};
    g->device = rig_add(g->machine, &echo_class, &(struct virtio_attach) {virtio_pci_attach, &pci});
    *state = g;
    return 0;
}

static int teardown(void **state)
{
    guest_destroy(*state);
    free(*state);
    return 0;
}

static struct echo *echo(struct guest *g)
{
    return echo_of(virtio_of(g->device));
}

/* --- status and features --- */

static void test_capabilities_describe_the_registers(void **state)
{
    struct guest *g = *state;
    assert_int_equal(guest_config_read(g, PCI_DEVICE_ID, 2), 0x1040 + 40);
    assert_int_equal(guest_config_read(g, PCI_REVISION_ID, 1), 1);
    for (int type = VIRTIO_PCI_CAP_COMMON; type <= VIRTIO_PCI_CAP_PCI; type++) {
        unsigned at = guest_find_capability(g, PCI_CAPABILITY_VENDOR, type);
        assert_int_not_equal(at, 0);
        uint32_t end = guest_config_read(g, at + 8, 4) + guest_config_read(g, at + 12, 4);
        assert_true(end <= VIRTIO_PCI_BAR_SIZE);
    }
    unsigned notify = guest_find_capability(g, PCI_CAPABILITY_VENDOR, VIRTIO_PCI_CAP_NOTIFY);
    assert_int_equal(guest_config_read(g, notify + 16, 4), VIRTIO_PCI_NOTIFY_FACTOR);
}

static void test_negotiation(void **state)
{
    struct guest *g = *state;
    guest_enable(g);
    assert_int_equal(guest_offered(g), ECHO_FEATURE | VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC |
                                           VIRTIO_F_EVENT_IDX);
    guest_negotiate(g, ECHO_FEATURE); /* no VERSION_1 */
    assert_int_equal(guest_status(g) & VIRTIO_STATUS_FEATURES_OK, 0);
    guest_negotiate(g, VIRTIO_F_VERSION_1 | BIT(5)); /* not offered */
    assert_int_equal(guest_status(g) & VIRTIO_STATUS_FEATURES_OK, 0);
    guest_set_status(g, GUEST_STATUS_READY | VIRTIO_STATUS_DRIVER_OK);
    assert_int_equal(guest_status(g) & VIRTIO_STATUS_DRIVER_OK, 0);
    assert_int_equal(echo(g)->starts, 0);
    guest_negotiate(g, VIRTIO_F_VERSION_1 | ECHO_FEATURE);
    assert_int_equal(guest_status(g), GUEST_STATUS_READY);
    guest_write(g, VIRTIO_PCI_DRIVER_FEATURE_SELECT, 4, 0); /* too late */
    guest_write(g, VIRTIO_PCI_DRIVER_FEATURE, 4, 0);
    assert_int_equal(guest_read(g, VIRTIO_PCI_DRIVER_FEATURE, 4), ECHO_FEATURE);
    guest_set_status(g, VIRTIO_STATUS_ACKNOWLEDGE); /* bits do not go away */
    assert_int_equal(guest_status(g), GUEST_STATUS_READY);
    guest_set_status(g, GUEST_STATUS_READY | VIRTIO_STATUS_DRIVER_OK);
    assert_int_equal(echo(g)->starts, 1);
    guest_set_status(g, 0);
    assert_int_equal(guest_status(g), 0);
    assert_int_equal(guest_read(g, VIRTIO_PCI_DRIVER_FEATURE, 4), 0);
}

/* The bell of a queue as the engine has it; NULL: it hangs nowhere. */
static const struct engine_fake_doorbell *find_bell(struct guest *g, struct engine_fake_log *log,
                                                    unsigned queue)
{
    engine_fake_read_log(g->machine->engine_vm, log);
    for (unsigned i = 0; i < log->doorbell_count; i++) {
        if (log->doorbell[i].address ==
            g->bar + VIRTIO_PCI_NOTIFY + queue * VIRTIO_PCI_NOTIFY_FACTOR)
            return &log->doorbell[i];
    }
    return NULL;
}

static void test_doorbells_go_where_the_bar_goes(void **state)
{
    struct guest *g = *state;
    struct engine_fake_log log;
    engine_fake_read_log(g->machine->engine_vm, &log);
    assert_int_equal(log.doorbell_count, 0);
    guest_enable(g);
    assert_true(find_bell(g, &log, 0) && find_bell(g, &log, 1));
    assert_int_equal(log.doorbell_count, 2);
    assert_int_equal(find_bell(g, &log, 1)->size, 2);
    guest_config_write(g, PCI_BAR0, 4, (uint32_t)(g->bar + (1u << 24)));
    g->bar += 1u << 24;
    assert_true(find_bell(g, &log, 0) && find_bell(g, &log, 1));
    assert_int_equal(log.doorbell_count, 2);
    guest_config_write(g, PCI_COMMAND, 2, 0);
    engine_fake_read_log(g->machine->engine_vm, &log);
    assert_int_equal(log.doorbell_count, 0);
}

static void test_a_doorbell_has_the_loop_look_at_the_queue(void **state)
{
    struct guest *g = *state;
    struct engine_fake_log log;
    const uint64_t ring = 1;
    guest_start(g, 0, 2);
    guest_add(g, 1, &(struct guest_part) {GUEST_BUFFERS, 64, true}, 1);
    const struct engine_fake_doorbell *bell = find_bell(g, &log, 1);
    assert_int_equal(write(bell->fd, &ring, sizeof ring), sizeof ring);
    assert_int_equal(echo(g)->taken, 0);
    guest_run_loop(g);
    assert_int_equal(echo(g)->taken, 1);
    assert_int_equal(guest_used_idx(g, 1), 1);
    guest_set_status(g, 0); /* a late ring of a device that was reset does nothing */
    assert_int_equal(write(bell->fd, &ring, sizeof ring), sizeof ring);
    guest_run_loop(g);
    assert_int_equal(echo(g)->taken, 1);
    assert_int_equal(g->device->guest_errors, 0);
}

static void test_registers_of_queues(void **state)
{
    struct guest *g = *state;
    guest_enable(g);
    guest_negotiate(g, VIRTIO_F_VERSION_1);
    assert_int_equal(guest_read(g, VIRTIO_PCI_NUM_QUEUES, 2), 2);
    guest_write(g, VIRTIO_PCI_QUEUE_SELECT, 2, 2);
    assert_int_equal(guest_read(g, VIRTIO_PCI_QUEUE_SIZE, 2), 0); /* does not exist */
    guest_write(g, VIRTIO_PCI_QUEUE_SELECT, 2, 1);
    assert_int_equal(guest_read(g, VIRTIO_PCI_QUEUE_SIZE, 2), VIRTQUEUE_SIZE_MAX);
    assert_int_equal(guest_read(g, VIRTIO_PCI_QUEUE_NOTIFY_OFF, 2), 1);
    const unsigned wrong[] = {0, 3, 100, 512, 0xffff};
    for (unsigned i = 0; i < ARRAY_COUNT(wrong); i++) {
        guest_write(g, VIRTIO_PCI_QUEUE_SIZE, 2, wrong[i]);
        assert_int_equal(guest_read(g, VIRTIO_PCI_QUEUE_SIZE, 2), VIRTQUEUE_SIZE_MAX);
    }
    guest_setup_queue(g, 1, 64);
    guest_write(g, VIRTIO_PCI_QUEUE_DESC, 8, 0x1234560); /* enabled: stays */
    assert_int_equal(guest_read(g, VIRTIO_PCI_QUEUE_DESC, 8), g->queue[1].descriptors);
    guest_write(g, VIRTIO_PCI_QUEUE_MSIX_VECTOR, 2, 77);
    assert_int_equal(guest_read(g, VIRTIO_PCI_QUEUE_MSIX_VECTOR, 2), VIRTIO_PCI_NO_VECTOR);
    guest_write(g, VIRTIO_PCI_CONFIG_MSIX_VECTOR, 2, 2);
    assert_int_equal(guest_read(g, VIRTIO_PCI_CONFIG_MSIX_VECTOR, 2), 2);
}

static void test_misplaced_rings_need_reset(void **state)
{
    struct guest *g = *state;
    const struct {
        unsigned reg;
        uint64_t value;
    } wrong[] = {
        {VIRTIO_PCI_QUEUE_DESC, GUEST_RINGS + 8},     {VIRTIO_PCI_QUEUE_DRIVER, GUEST_RINGS + 1},
        {VIRTIO_PCI_QUEUE_DEVICE, GUEST_RINGS + 2},   {VIRTIO_PCI_QUEUE_DESC, GUEST_RAM - 16},
        {VIRTIO_PCI_QUEUE_DRIVER, GUEST_RAM - 2},     {VIRTIO_PCI_QUEUE_DEVICE, ~0ull - 3},
        {VIRTIO_PCI_QUEUE_DEVICE, MACHINE_ECAM_BASE},
    };
    guest_enable(g);
    for (unsigned i = 0; i < ARRAY_COUNT(wrong); i++) {
        guest_negotiate(g, VIRTIO_F_VERSION_1);
        guest_place_queue(g, 0, 16);
        guest_write(g, wrong[i].reg, 8, wrong[i].value);
        guest_write(g, VIRTIO_PCI_QUEUE_ENABLE, 2, 1);
        assert_int_equal(guest_read(g, VIRTIO_PCI_QUEUE_ENABLE, 2), 0);
        assert_true(guest_status(g) & VIRTIO_STATUS_NEEDS_RESET);
    }
    guest_start(g, 0, 1); /* a reset heals */
    assert_int_equal(guest_status(g), GUEST_STATUS_READY | VIRTIO_STATUS_DRIVER_OK);
}

/* --- chains --- */

static const struct guest_part one_buffer = {GUEST_BUFFERS, 64, true};

static void test_chains_come_back(void **state)
{
    struct guest *g = *state;
    uint32_t head, written;
    guest_start(g, 0, 2);
    const struct guest_part parts[] = {
        {GUEST_BUFFERS, 16, false}, {GUEST_BUFFERS + 64, 100, true}, {GUEST_BUFFERS, 28, true}};
    for (unsigned i = 0; i < 70000; i++) { /* beyond the wrap of the indices */
        uint16_t offered = guest_add(g, i % 2, parts, 3);
        guest_kick(g, i % 2);
        assert_true(guest_take_used(g, i % 2, &head, &written));
        assert_int_equal(head, offered);
        assert_int_equal(written, 128);
    }
    assert_int_equal(echo(g)->chain.readable_size, 16);
    assert_int_equal(echo(g)->taken, 70000);
    assert_int_equal(virtio_of(g->device)->queue[0].in_flight, 0);
}

static void test_indirect_table(void **state)
{
    struct guest *g = *state;
    uint32_t head, written;
    uint64_t table = GUEST_BUFFERS + 0x8000;
    guest_start(g, VIRTIO_F_INDIRECT_DESC, 1);
    struct guest_queue *q = &g->queue[0];
    for (unsigned i = 0; i < 100; i++) /* longer than the ring of 16, shorter than its maximum */
        guest_set_desc(
            g, table, i,
            (struct guest_desc) {GUEST_BUFFERS + i * 32, 32,
                                 (uint16_t)((i >= 50 ? DESC_WRITE : 0) | (i < 99 ? DESC_NEXT : 0)),
                                 (uint16_t)(i + 1)});
    /* A plain descriptor may come before it (2.7.5.3.2). */
    guest_set_desc(g, q->descriptors, 0, (struct guest_desc) {GUEST_BUFFERS, 8, DESC_NEXT, 7});
    guest_set_desc(g, q->descriptors, 7, (struct guest_desc) {table, 1600, DESC_INDIRECT, 0});
    guest_offer(g, 0, 0);
    guest_kick(g, 0);
    assert_true(guest_take_used(g, 0, &head, &written));
    assert_int_equal(written, 1600);
    assert_int_equal(echo(g)->chain.readable_size, 1608);
}

/* Each entry makes one bad ring out of a good one; the device must refuse it. */
struct bad_ring {
    const char *name;
    bool indirect; /* negotiate it; the table lies at TABLE */
    struct guest_desc desc[4];
    struct guest_desc table[4];
    uint16_t head;
};

#define TABLE (GUEST_BUFFERS + 0x8000)
#define BUF   GUEST_BUFFERS

static const struct bad_ring bad_rings[] = {
    {"loop", false, {{BUF, 4, DESC_NEXT, 1}, {BUF, 4, DESC_NEXT, 0}}, {{0}}, 0},
    {"self loop", false, {{BUF, 4, DESC_NEXT, 0}}, {{0}}, 0},
    {"head out of table", false, {{BUF, 4, 0, 0}}, {{0}}, 16},
    {"head far out of table", false, {{BUF, 4, 0, 0}}, {{0}}, 0xffff},
    {"next out of table", false, {{BUF, 4, DESC_NEXT, 16}}, {{0}}, 0},
    {"buffer outside RAM", false, {{MACHINE_ECAM_BASE, 4, DESC_WRITE, 0}}, {{0}}, 0},
    {"buffer over RAM's end", false, {{GUEST_RAM - 4, 8, DESC_WRITE, 0}}, {{0}}, 0},
    {"buffer that wraps", false, {{~0ull - 3, 8, DESC_WRITE, 0}}, {{0}}, 0},
    {"length 0", false, {{BUF, 0, DESC_WRITE, 0}}, {{0}}, 0},
    {"readable after writable",
     false,
     {{BUF, 4, DESC_WRITE | DESC_NEXT, 1}, {BUF, 4, 0, 0}},
     {{0}},
     0},
    {"indirect not negotiated", false, {{TABLE, 16, DESC_INDIRECT, 0}}, {{BUF, 4, 0, 0}}, 0},
    {"indirect in indirect",
     true,
     {{TABLE, 32, DESC_INDIRECT, 0}},
     {{BUF, 4, DESC_NEXT, 1}, {TABLE, 16, DESC_INDIRECT, 0}},
     0},
    {"indirect with next",
     true,
     {{TABLE, 16, DESC_INDIRECT | DESC_NEXT, 1}, {BUF, 4, 0, 0}},
     {{BUF, 4, 0, 0}},
     0},
    {"indirect table of length 0", true, {{TABLE, 0, DESC_INDIRECT, 0}}, {{BUF, 4, 0, 0}}, 0},
    {"indirect table of 17 bytes", true, {{TABLE, 17, DESC_INDIRECT, 0}}, {{BUF, 4, 0, 0}}, 0},
    {"indirect table too long", true, {{TABLE, 257 * 16, DESC_INDIRECT, 0}}, {{BUF, 4, 0, 0}}, 0},
    {"indirect table outside RAM", true, {{GUEST_RAM - 16, 32, DESC_INDIRECT, 0}}, {{0}}, 0},
    {"indirect table far outside", true, {{~0ull - 15, 32, DESC_INDIRECT, 0}}, {{0}}, 0},
    {"indirect next out of table",
     true,
     {{TABLE, 32, DESC_INDIRECT, 0}},
     {{BUF, 4, DESC_NEXT, 2}},
     0},
    {"indirect loop", true, {{TABLE, 16, DESC_INDIRECT, 0}}, {{BUF, 4, DESC_NEXT, 0}}, 0},
};

static void test_bad_rings_need_reset(void **state)
{
    struct guest *g = *state;
    guest_enable(g);
    for (unsigned i = 0; i < ARRAY_COUNT(bad_rings); i++) {
        const struct bad_ring *bad = &bad_rings[i];
        guest_start(g, bad->indirect ? VIRTIO_F_INDIRECT_DESC : 0, 1);
        unsigned taken = echo(g)->taken;
        uint64_t errors = g->device->guest_errors;
        for (unsigned d = 0; d < 4; d++) {
            guest_set_desc(g, g->queue[0].descriptors, d, bad->desc[d]);
            guest_set_desc(g, TABLE, d, bad->table[d]);
        }
        guest_offer(g, 0, bad->head);
        guest_kick(g, 0);
        if (!(guest_status(g) & VIRTIO_STATUS_NEEDS_RESET) || echo(g)->taken != taken)
            fail_msg("%s: was accepted", bad->name);
        assert_int_equal(guest_used_idx(g, 0), 0);
        assert_int_equal(g->device->guest_errors, errors + 1);
        guest_kick(g, 0); /* nothing more happens until the reset */
        assert_int_equal(g->device->guest_errors, errors + 1);
    }
}

static void test_index_too_far_ahead_needs_reset(void **state)
{
    struct guest *g = *state;
    guest_start(g, 0, 1);
    guest_put16(g, g->queue[0].avail + 2, 17);
    guest_kick(g, 0);
    assert_true(guest_status(g) & VIRTIO_STATUS_NEEDS_RESET);
    assert_int_equal(echo(g)->taken, 0);
}

static void test_overlapping_buffers_stay_bounded(void **state)
{
    struct guest *g = *state;
    guest_start(g, VIRTIO_F_INDIRECT_DESC, 1);
    /* All RAM, 200 times over: strange, but within the rules. */
    for (unsigned i = 0; i < 200; i++)
        guest_set_desc(g, TABLE, i,
                       (struct guest_desc) {0, GUEST_RAM,
                                            (uint16_t)(DESC_WRITE | (i < 199 ? DESC_NEXT : 0)),
                                            (uint16_t)(i + 1)});
    guest_set_desc(g, g->queue[0].descriptors, 0,
                   (struct guest_desc) {TABLE, 200 * 16, DESC_INDIRECT, 0});
    guest_offer(g, 0, 0);
    guest_kick(g, 0);
    assert_int_equal(echo(g)->chain.writable_size, 200ull * GUEST_RAM);
    assert_int_equal(guest_status(g) & VIRTIO_STATUS_NEEDS_RESET, 0);
}

static void test_notify_for_no_queue_is_counted(void **state)
{
    struct guest *g = *state;
    guest_start(g, 0, 1);
    uint64_t errors = g->device->guest_errors;
    guest_kick(g, 9);
    guest_kick(g, 1000);
    assert_int_equal(g->device->guest_errors, errors + 2);
    guest_kick(g, 1); /* exists, is not enabled */
    assert_int_equal(g->device->guest_errors, errors + 2);
}

/* --- notifications and interrupts --- */

static void offer_and_kick(struct guest *g)
{
    uint32_t head, written;
    guest_add(g, 0, &one_buffer, 1);
    guest_kick(g, 0);
    assert_true(guest_take_used(g, 0, &head, &written));
}

static void test_msix_vector_of_a_queue(void **state)
{
    struct guest *g = *state;
    struct engine_fake_log log;
    guest_start(g, 0, 2);
    guest_enable_msix(g, 3);
    offer_and_kick(g);
    engine_fake_read_log(g->machine->engine_vm, &log);
    assert_int_equal(log.msi_count, 1);
    assert_int_equal(log.msi[0].data, 0x40);
    assert_int_equal(guest_read(g, VIRTIO_PCI_ISR, 1), 0); /* not used for queues with MSI-X */
    guest_put16(g, g->queue[0].avail, 1);                  /* VIRTQ_AVAIL_F_NO_INTERRUPT */
    offer_and_kick(g);
    assert_int_equal(guest_msi_count(g), 1);
}

static void test_intx_and_isr(void **state)
{
    struct guest *g = *state;
    unsigned line = pci_irq_gsi(g->slot, 0);
    guest_start(g, 0, 1);
    offer_and_kick(g);
    assert_true(rig_line(g->machine, line));
    assert_int_equal(guest_read(g, VIRTIO_PCI_ISR, 1), 1);
    assert_false(rig_line(g->machine, line));
    assert_int_equal(guest_read(g, VIRTIO_PCI_ISR, 1), 0);
    guest_put16(g, g->queue[0].avail + 2, 99); /* bad: a configuration change interrupt */
    guest_kick(g, 0);
    assert_int_equal(guest_read(g, VIRTIO_PCI_ISR, 1), 2);
    guest_start(g, 0, 1);
    offer_and_kick(g);
    assert_true(rig_line(g->machine, line));
    guest_set_status(g, 0);
    assert_false(rig_line(g->machine, line));
}

static void test_event_index_suppresses_interrupts(void **state)
{
    struct guest *g = *state;
    guest_start(g, VIRTIO_F_EVENT_IDX, 1);
    guest_enable_msix(g, 2);
    struct guest_queue *q = &g->queue[0];
    guest_put16(g, q->avail + 4 + 2 * q->size, 5); /* used_event: after the sixth */
    for (unsigned i = 0; i < 10; i++) {
        offer_and_kick(g);
        /* The first one after a reset always interrupts: nothing was signalled before it. */
        assert_int_equal(guest_msi_count(g), i < 5 ? 1 : 2);
    }
}

static void test_event_index_asks_for_the_next_notify(void **state)
{
    struct guest *g = *state;
    guest_start(g, VIRTIO_F_EVENT_IDX, 1);
    struct guest_queue *q = &g->queue[0];
    offer_and_kick(g);
    assert_int_equal(guest_get16(g, q->used + 4 + 8 * q->size), 1); /* avail_event */
    offer_and_kick(g);
    assert_int_equal(guest_get16(g, q->used + 4 + 8 * q->size), 2);
}

static void test_bus_master_gates_memory(void **state)
{
    struct guest *g = *state;
    uint32_t head, written;
    guest_start(g, 0, 1);
    guest_config_write(g, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    guest_add(g, 0, &one_buffer, 1);
    guest_kick(g, 0);
    assert_int_equal(echo(g)->taken, 0);
    guest_config_write(g, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_BUS_MASTER);
    guest_run_loop(g);
    assert_true(guest_take_used(g, 0, &head, &written));
}

static void test_config_space_and_generation(void **state)
{
    struct guest *g = *state;
    guest_start(g, 0, 1);
    guest_write(g, VIRTIO_PCI_DEVICE + 4, 4, 0xcafe);
    assert_int_equal(guest_read(g, VIRTIO_PCI_DEVICE + 4, 2), 0xcafe);
    guest_write(g, VIRTIO_PCI_DEVICE + 8, 4, 1); /* beyond */
    assert_int_equal(guest_read(g, VIRTIO_PCI_DEVICE + 8, 4), 0);
    uint64_t generation = guest_read(g, VIRTIO_PCI_CONFIG_GENERATION, 1);
    pthread_mutex_lock(&g->device->lock);
    virtio_config_changed(virtio_of(g->device));
    pthread_mutex_unlock(&g->device->lock);
    assert_int_equal(guest_read(g, VIRTIO_PCI_CONFIG_GENERATION, 1), generation + 1);
    assert_int_equal(guest_read(g, VIRTIO_PCI_ISR, 1), 2);
}

static void test_registers_through_config_space(void **state)
{
    struct guest *g = *state;
    guest_enable(g);
    unsigned cap = guest_find_capability(g, PCI_CAPABILITY_VENDOR, VIRTIO_PCI_CAP_PCI);
    guest_config_write(g, cap + 4, 1, VIRTIO_PCI_BAR);
    guest_config_write(g, cap + 8, 4, VIRTIO_PCI_NUM_QUEUES);
    guest_config_write(g, cap + 12, 4, 2);
    assert_int_equal(guest_config_read(g, cap + 16, 2), 2);
    guest_config_write(g, cap + 8, 4, VIRTIO_PCI_DEVICE_STATUS);
    guest_config_write(g, cap + 12, 4, 1);
    guest_config_write(g, cap + 16, 1, VIRTIO_STATUS_ACKNOWLEDGE);
    assert_int_equal(guest_status(g), VIRTIO_STATUS_ACKNOWLEDGE);
    guest_config_write(g, cap + 8, 4, 0xfffffffc); /* nowhere */
    guest_config_write(g, cap + 12, 4, 4);
    assert_int_equal(guest_config_read(g, cap + 16, 4), 0xffffffff);
    guest_config_write(g, cap + 4, 1, 200);
    guest_config_write(g, cap + 16, 4, 1);
}

static void test_state_goes_on_elsewhere(void **state)
{
    struct guest *g = *state;
    void *other_state;
    guest_start(g, 0, 2);
    offer_and_kick(g);
    echo(g)->hold = true;
    guest_add(g, 0, &one_buffer, 1); /* available, not yet taken */
    guest_kick(g, 0);
    setup(&other_state);
    struct guest *other = other_state;
    uint8_t *rings = malloc(2 * GUEST_RING_STRIDE);
    guest_get(g, GUEST_RINGS, rings, 2 * GUEST_RING_STRIDE);
    guest_put(other, GUEST_RINGS, rings, 2 * GUEST_RING_STRIDE);
    free(rings);
    rig_assert_round_trip(g->device, other->device);
    other->queue[0] = g->queue[0];
    guest_run_loop(other); /* looks at the rings without a notify */
    assert_int_equal(echo(other)->taken, 1);
    assert_int_equal(guest_used_idx(other, 0), 2);
    teardown(&other_state);
}

static void test_unknown_feature_in_state_is_refused(void **state)
{
    struct guest *g = *state;
    struct state_writer w;
    guest_start(g, 0, 1);
    virtio_of(g->device)->driver_features |= BIT(50);
    rig_save(g->device, &w);
    assert_int_equal(rig_load(g->device, w.data, w.size), -ENOTSUP);
    g->device->class->reset(g->device);
    state_writer_free(&w);
}

/* The features are checked by FEATURES_OK: a live device without it could have any. */
static void test_live_without_features_in_state_is_refused(void **state)
{
    struct guest *g = *state;
    struct state_writer w;
    guest_start(g, 0, 1);
    virtio_of(g->device)->driver_features |= BIT(50);
    virtio_of(g->device)->status &= (uint8_t)~VIRTIO_STATUS_FEATURES_OK;
    rig_save(g->device, &w);
    assert_int_equal(rig_load(g->device, w.data, w.size), -EINVAL);
    g->device->class->reset(g->device);
    state_writer_free(&w);
}

/* Random descriptors and indices; whatever they are, the next reset must give a working device. */
static void test_random_rings(void **state)
{
    struct guest *g = *state;
    uint64_t seed = 99;
    for (unsigned round = 0; round < 2000; round++) {
        guest_start(g, rig_random(&seed) & (VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX), 1);
        struct guest_queue *q = &g->queue[0];
        for (unsigned i = 0; i < 16; i++)
            guest_set_desc(g, q->descriptors, i,
                           (struct guest_desc) {
                               rig_random(&seed) % (GUEST_RAM + 4096),
                               (uint32_t)(rig_random(&seed) % 5000 * (rig_random(&seed) % 8 != 0)),
                               (uint16_t)(rig_random(&seed) % 8),
                               (uint16_t)(rig_random(&seed) % 18)});
        for (unsigned i = 0; i < 8; i++)
            guest_offer(g, 0, (uint16_t)(rig_random(&seed) % 17));
        guest_kick(g, 0);
        guest_run_loop(g);
        assert_true(virtio_of(g->device)->queue[0].in_flight == 0);
    }
    guest_start(g, 0, 1);
    offer_and_kick(g);
}

static void test_garbage_in_registers(void **state)
{
    struct guest *g = *state;
    guest_start(g, 0, 2);
    rig_fuzz(g->machine, g->machine->mmio, g->bar, VIRTIO_PCI_COMMON_SIZE, 100000);
    rig_fuzz(g->machine, g->machine->mmio, g->bar, VIRTIO_PCI_BAR_SIZE, 100000);
    rig_fuzz(g->machine, g->machine->mmio, guest_ecam(g, 0), 256, 100000);
    guest_run_loop(g);
    g->device->class->reset(g->device);
    guest_start(g, 0, 1);
    offer_and_kick(g);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_capabilities_describe_the_registers),
        TEST(test_negotiation),
        TEST(test_doorbells_go_where_the_bar_goes),
        TEST(test_a_doorbell_has_the_loop_look_at_the_queue),
        TEST(test_registers_of_queues),
        TEST(test_misplaced_rings_need_reset),
        TEST(test_chains_come_back),
        TEST(test_indirect_table),
        TEST(test_bad_rings_need_reset),
        TEST(test_index_too_far_ahead_needs_reset),
        TEST(test_overlapping_buffers_stay_bounded),
        TEST(test_notify_for_no_queue_is_counted),
        TEST(test_msix_vector_of_a_queue),
        TEST(test_intx_and_isr),
        TEST(test_event_index_suppresses_interrupts),
        TEST(test_event_index_asks_for_the_next_notify),
        TEST(test_bus_master_gates_memory),
        TEST(test_config_space_and_generation),
        TEST(test_registers_through_config_space),
        TEST(test_state_goes_on_elsewhere),
        TEST(test_unknown_feature_in_state_is_refused),
        TEST(test_live_without_features_in_state_is_refused),
        TEST(test_random_rings),
        TEST(test_garbage_in_registers),
    };
    return cmocka_run_group_tests_name("virtio", tests, NULL, NULL);
}
