/* device/virtio/virtio_net with a backend that records: frames both ways, checksums, merged
 * buffers, back-pressure in both directions, control queue. */
#include "virtio_guest.h"

#include <errno.h>

#include "backend/net/net.h"
#include "device/virtio/virtio_net.h"

struct fixture {
    struct guest guest;
    struct net net;
    uint8_t sent[2048];
    size_t sent_length;
    unsigned sent_count, resumed;
    bool paused;
    int result;
};

#define RX VIRTIO_NET_QUEUE_RECEIVE
#define TX VIRTIO_NET_QUEUE_TRANSMIT
#define CT VIRTIO_NET_QUEUE_CONTROL

static int backend_send(struct net *net, const struct iovec *iov, unsigned count)
{
    struct fixture *f = container_of(net, struct fixture, net);
    size_t length = 0;
    if (f->result)
        return f->result;
    for (unsigned i = 0; i < count; i++) {
        assert_true(length + iov[i].iov_len <= sizeof f->sent);
        memcpy(f->sent + length, iov[i].iov_base, iov[i].iov_len);
        length += iov[i].iov_len;
    }
    f->sent_length = length;
    f->sent_count++;
    return 0;
}

static void backend_pause(struct net *net, bool paused)
{
    struct fixture *f = container_of(net, struct fixture, net);
    f->resumed += !paused;
    f->paused = paused;
}

static const struct net_ops backend_ops = {.send = backend_send, .pause_receive = backend_pause};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->net.ops = &backend_ops;
    guest_create(&f->guest, 4);
    const struct virtio_pci_config pci = {f->guest.host, 4};
    const struct virtio_net_config config = {
        .transport = {virtio_pci_attach, &pci}, .net = &f->net, .mac = {0x52, 0x54, 0, 1, 2, 3}};
    f->guest.device = rig_add(f->guest.machine, &virtio_net_class, &config);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    guest_destroy(&f->guest);
    assert_null(f->net.client.receive); /* a dead card is not called */
    free(f);
    return 0;
}

#define HEADER GUEST_BUFFERS
#define FRAME  (GUEST_BUFFERS + 0x1000)
#define BUFFER (GUEST_BUFFERS + 0x10000)

static void offer_frame(struct fixture *f, const uint8_t *header, const uint8_t *frame,
                        uint32_t length)
{
    guest_put(&f->guest, HEADER, header, VIRTIO_NET_HEADER_SIZE);
    guest_put(&f->guest, FRAME, frame, length);
    const struct guest_part parts[] = {{HEADER, VIRTIO_NET_HEADER_SIZE, false},
                                       {FRAME, length, false}};
    guest_add(&f->guest, TX, parts, 2);
    guest_kick(&f->guest, TX);
}

static void fill(uint8_t *frame, size_t length)
{
    for (size_t i = 0; i < length; i++)
        frame[i] = (uint8_t)(i * 7 + 1);
}

static bool take(struct fixture *f, unsigned queue, uint32_t *written)
{
    uint32_t head;
    return guest_take_used(&f->guest, queue, &head, written);
}

static void test_transmit(void **state)
{
    struct fixture *f = *state;
    uint8_t header[12] = {0}, frame[100];
    uint32_t written;
    fill(frame, sizeof frame);
    guest_start(&f->guest, 0, 3);
    offer_frame(f, header, frame, sizeof frame);
    assert_true(take(f, TX, &written));
    assert_int_equal(f->sent_length, sizeof frame);
    assert_memory_equal(f->sent, frame, sizeof frame);
}

/* The sum over all 16-bit words of what was summed, checksum included, must be all ones. */
static uint16_t big_endian_sum(const uint8_t *bytes, size_t length)
{
    uint32_t sum = 0;
    for (size_t i = 0; i < length; i++)
        sum += i % 2 ? bytes[i] : (uint32_t)bytes[i] << 8;
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

static void test_checksum_is_filled_in(void **state)
{
    struct fixture *f = *state;
    uint8_t header[12] = {VIRTIO_NET_HDR_F_NEEDS_CSUM}, frame[131];
    guest_start(&f->guest, VIRTIO_NET_F_CSUM, 3);
    for (unsigned length = 60; length < sizeof frame; length++) {
        fill(frame, length);
        store_le16(header + 6, 34);
        store_le16(header + 8, 16); /* TCP's place */
        store_le16(frame + 34 + 16, 0);
        offer_frame(f, header, frame, length);
        assert_int_equal(f->sent_length, length);
        assert_int_equal(big_endian_sum(f->sent + 34, length - 34), 0xffff);
        f->sent_length = 0;
    }
}

static void test_backend_with_offload_gets_the_frame_as_it_is(void **state)
{
    struct fixture *f = *state;
    uint8_t header[12] = {VIRTIO_NET_HDR_F_NEEDS_CSUM, 0, 0, 0, 0, 0, 34, 0, 16}, frame[80];
    fill(frame, sizeof frame);
    f->net.checksum_offload = true;
    guest_start(&f->guest, VIRTIO_NET_F_CSUM, 3);
    offer_frame(f, header, frame, sizeof frame);
    assert_memory_equal(f->sent, frame, sizeof frame);
}

static void test_bad_frames_are_dropped(void **state)
{
    struct fixture *f = *state;
    uint8_t frame[80];
    uint32_t written;
    const uint8_t headers[][12] = {
        {VIRTIO_NET_HDR_F_NEEDS_CSUM, 0, 0, 0, 0, 0, 80, 0, 0, 0},        /* starts at the end */
        {VIRTIO_NET_HDR_F_NEEDS_CSUM, 0, 0, 0, 0, 0, 34, 0, 45, 0},       /* its place is outside */
        {VIRTIO_NET_HDR_F_NEEDS_CSUM, 0, 0, 0, 0, 0, 255, 255, 255, 255}, /* far outside */
        {0, 1},                                                           /* segmentation */
    };
    fill(frame, sizeof frame);
    guest_start(&f->guest, VIRTIO_NET_F_CSUM, 3);
    for (unsigned i = 0; i < ARRAY_COUNT(headers); i++) {
        offer_frame(f, headers[i], frame, sizeof frame);
        assert_true(take(f, TX, &written)); /* the buffer comes back all the same */
    }
    guest_add(&f->guest, TX, &(struct guest_part) {HEADER, 5, false}, 1); /* half a header */
    guest_add(&f->guest, TX, &(struct guest_part) {HEADER, 12, false}, 1);
    guest_add(&f->guest, TX, &(struct guest_part) {0, GUEST_RAM, false}, 1);
    guest_kick(&f->guest, TX);
    assert_int_equal(guest_used_idx(&f->guest, TX), ARRAY_COUNT(headers) + 3);
    assert_int_equal(f->sent_count, 0);
    assert_int_equal(f->guest.device->guest_errors, ARRAY_COUNT(headers) + 3);
}

static void test_full_backend_delays_frames(void **state)
{
    struct fixture *f = *state;
    uint8_t header[12] = {0}, frame[64];
    fill(frame, sizeof frame);
    guest_start(&f->guest, VIRTIO_F_EVENT_IDX, 3);
    f->result = -EAGAIN;
    offer_frame(f, header, frame, sizeof frame);
    offer_frame(f, header, frame, sizeof frame);
    assert_int_equal(guest_used_idx(&f->guest, TX), 0);
    f->result = 0;
    f->net.client.can_send(f->net.client.context);
    guest_run_loop(&f->guest);
    assert_int_equal(f->sent_count, 2);
    assert_int_equal(guest_used_idx(&f->guest, TX), 2);
}

static bool deliver(struct fixture *f, const uint8_t *frame, size_t length)
{
    return f->net.client.receive(f->net.client.context, frame, length);
}

/* The buffer of descriptor i lies at BUFFER + i * 0x1000. */
static void offer_buffers(struct fixture *f, unsigned count, uint32_t size)
{
    for (unsigned i = 0; i < count; i++) {
        unsigned index = f->guest.queue[RX].next_desc % 16;
        guest_add(&f->guest, RX, &(struct guest_part) {BUFFER + index * 0x1000, size, true}, 1);
    }
    guest_kick(&f->guest, RX);
}

static void test_receive(void **state)
{
    struct fixture *f = *state;
    uint8_t frame[1000], got[1012], header[12] = {0};
    uint32_t written;
    fill(frame, sizeof frame);
    assert_true(deliver(f, frame, sizeof frame)); /* no driver: lost */
    guest_start(&f->guest, 0, 3);
    offer_buffers(f, 2, 1526);
    assert_true(deliver(f, frame, sizeof frame));
    assert_true(take(f, RX, &written));
    assert_int_equal(written, sizeof got);
    guest_get(&f->guest, BUFFER, got, sizeof got);
    header[10] = 1; /* num_buffers */
    assert_memory_equal(got, header, sizeof header);
    assert_memory_equal(got + 12, frame, sizeof frame);
    offer_buffers(f, 0, 0);
    uint8_t big[1600] = {0};
    assert_true(deliver(f, big, sizeof big)); /* does not fit: lost, the buffer stays */
    assert_true(deliver(f, frame, sizeof frame));
    assert_true(take(f, RX, &written));
}

static void test_receive_waits_for_buffers(void **state)
{
    struct fixture *f = *state;
    uint8_t frame[100];
    uint32_t written;
    fill(frame, sizeof frame);
    assert_true(f->paused);
    guest_start(&f->guest, VIRTIO_F_EVENT_IDX, 3);
    assert_false(f->paused);
    assert_false(deliver(f, frame, sizeof frame));
    assert_int_equal(f->resumed, 1);
    offer_buffers(f, 1, 1526);
    assert_int_equal(f->resumed, 2);
    assert_true(deliver(f, frame, sizeof frame));
    assert_true(take(f, RX, &written));
    assert_false(deliver(f, frame, sizeof frame));
    guest_set_status(&f->guest, 0);
    assert_true(f->paused);
    guest_start(&f->guest, VIRTIO_F_EVENT_IDX, 3); /* what was refused is asked for again */
    assert_int_equal(f->resumed, 3);
}

static void test_merged_receive_buffers(void **state)
{
    struct fixture *f = *state;
    uint8_t frame[1000], got[12 + 1000];
    fill(frame, sizeof frame);
    guest_start(&f->guest, VIRTIO_NET_F_MRG_RXBUF, 3);
    offer_buffers(f, 3, 300); /* too few: nothing may be seen of it */
    assert_false(deliver(f, frame, sizeof frame));
    assert_int_equal(guest_used_idx(&f->guest, RX), 0);
    offer_buffers(f, 3, 300);
    assert_int_equal(f->resumed, 2);
    assert_true(deliver(f, frame, sizeof frame));
    assert_int_equal(guest_used_idx(&f->guest, RX), 4);
    size_t length = 0;
    uint32_t head = 0, written = 0;
    for (unsigned i = 0; i < 4; i++) {
        assert_true(guest_take_used(&f->guest, RX, &head, &written));
        guest_get(&f->guest, BUFFER + head * 0x1000, got + length, written);
        length += written;
    }
    assert_int_equal(length, sizeof got);
    assert_int_equal(got[10], 4); /* num_buffers */
    assert_memory_equal(got + 12, frame, sizeof frame);
    assert_int_equal(virtio_of(f->guest.device)->queue[RX].in_flight, 0);
}

static void test_tiny_receive_buffers_need_reset(void **state)
{
    struct fixture *f = *state;
    uint8_t frame[300] = {0};
    guest_start(&f->guest, 0, 3);
    offer_buffers(f, 1, 12);
    assert_true(deliver(f, frame, sizeof frame));
    assert_true(guest_status(&f->guest) & VIRTIO_STATUS_NEEDS_RESET);
    guest_start(&f->guest, VIRTIO_NET_F_MRG_RXBUF, 3);
    for (unsigned i = 0; i < 16; i++) /* a frame in more buffers than the ring has: lost */
        guest_add(&f->guest, RX, &(struct guest_part) {BUFFER, 13, true}, 1);
    assert_true(deliver(f, frame, sizeof frame));
    assert_int_equal(guest_used_idx(&f->guest, RX), 0);
}

static uint8_t command(struct fixture *f, const uint8_t *bytes, uint32_t length)
{
    uint32_t written;
    uint8_t ack = 0xee;
    guest_put(&f->guest, HEADER, bytes, length);
    guest_put(&f->guest, FRAME, &ack, 1);
    const struct guest_part parts[] = {{HEADER, length, false}, {FRAME, 1, true}};
    guest_add(&f->guest, CT, parts, 2);
    guest_kick(&f->guest, CT);
    assert_true(take(f, CT, &written));
    guest_get(&f->guest, FRAME, &ack, 1);
    return ack;
}

static void test_control_queue(void **state)
{
    struct fixture *f = *state;
    const uint8_t mac[] = {1, 1, 2, 4, 6, 8, 10, 12}, promiscuous[] = {0, 0, 1}, unknown[] = {9, 9};
    guest_start(&f->guest, VIRTIO_NET_F_CTRL_VQ, 3);
    assert_int_equal(guest_read(&f->guest, VIRTIO_PCI_DEVICE, 4), 0x01005452);
    assert_int_equal(guest_read(&f->guest, VIRTIO_PCI_DEVICE + 6, 2), 1); /* link up */
    assert_int_equal(command(f, promiscuous, sizeof promiscuous), VIRTIO_NET_OK);
    assert_int_equal(command(f, unknown, sizeof unknown), VIRTIO_NET_ERR);
    assert_int_equal(command(f, mac, 5), VIRTIO_NET_ERR);
    assert_int_equal(command(f, mac, sizeof mac), VIRTIO_NET_OK);
    assert_int_equal(guest_read(&f->guest, VIRTIO_PCI_DEVICE, 4), 0x08060402);
    guest_set_status(&f->guest, 0);
    assert_int_equal(guest_read(&f->guest, VIRTIO_PCI_DEVICE, 4), 0x01005452);
}

static void test_link_change_is_told(void **state)
{
    struct fixture *f = *state;
    guest_start(&f->guest, VIRTIO_NET_F_STATUS, 3);
    f->net.client.link(f->net.client.context, false);
    assert_int_equal(guest_read(&f->guest, VIRTIO_PCI_DEVICE + 6, 2), 0);
    assert_int_equal(guest_read(&f->guest, VIRTIO_PCI_ISR, 1), 2);
}

static void test_state_survives_a_round_trip(void **state)
{
    struct fixture *f = *state, *other;
    const uint8_t mac[] = {1, 1, 2, 4, 6, 8, 10, 12};
    void *other_state;
    guest_start(&f->guest, VIRTIO_NET_F_MRG_RXBUF, 3);
    command(f, mac, sizeof mac);
    setup(&other_state);
    other = other_state;
    rig_assert_round_trip(f->guest.device, other->guest.device);
    other->guest.bar = f->guest.bar;
    assert_false(other->paused);
    assert_int_equal(guest_read(&other->guest, VIRTIO_PCI_DEVICE, 4), 0x08060402);
    teardown(&other_state);
}

static void test_random_rings(void **state)
{
    struct fixture *f = *state;
    struct guest *g = &f->guest;
    uint64_t seed = 5;
    uint8_t frame[1500] = {0};
    for (unsigned round = 0; round < 500; round++) {
        guest_start(g, rig_random(&seed) & (VIRTIO_NET_F_MRG_RXBUF | VIRTIO_NET_F_CSUM), 3);
        for (unsigned i = 0; i < 48; i++)
            guest_set_desc(g, g->queue[i / 16].descriptors, i % 16,
                           (struct guest_desc) {rig_random(&seed) % GUEST_RAM,
                                                (uint32_t)(rig_random(&seed) % 600),
                                                (uint16_t)(rig_random(&seed) % 4),
                                                (uint16_t)(rig_random(&seed) % 16)});
        for (unsigned i = 0; i < 24; i++)
            guest_offer(g, i % 3, (uint16_t)(rig_random(&seed) % 16));
        for (unsigned queue = 0; queue < 3; queue++)
            guest_kick(g, queue);
        deliver(f, frame, rig_random(&seed) % sizeof frame);
        guest_run_loop(g);
    }
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_transmit),
        TEST(test_checksum_is_filled_in),
        TEST(test_backend_with_offload_gets_the_frame_as_it_is),
        TEST(test_bad_frames_are_dropped),
        TEST(test_full_backend_delays_frames),
        TEST(test_receive),
        TEST(test_receive_waits_for_buffers),
        TEST(test_merged_receive_buffers),
        TEST(test_tiny_receive_buffers_need_reset),
        TEST(test_control_queue),
        TEST(test_link_change_is_told),
        TEST(test_state_survives_a_round_trip),
        TEST(test_random_rings),
    };
    return cmocka_run_group_tests_name("virtio_net", tests, NULL, NULL);
}
