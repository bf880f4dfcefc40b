/* A machine for the fuzz targets of devices: see pc.h. One thread, which is the loop's. */
#include "pc.h"

#include <errno.h>

#include "backend/console/console.h"
#include "backend/disk/disk.h"
#include "backend/net/net.h"
#include "device/legacy/acpi_pm.h"
#include "device/legacy/debug_exit.h"
#include "device/legacy/fw_cfg.h"
#include "device/legacy/i8042.h"
#include "device/legacy/ioapic.h"
#include "device/legacy/pic.h"
#include "device/legacy/pit.h"
#include "device/legacy/rtc.h"
#include "device/legacy/serial.h"
#include "device/legacy/system_port.h"
#include "device/pci/pci.h"
#include "device/virtio/virtio_blk.h"
#include "device/virtio/virtio_console.h"
#include "device/virtio/virtio_net.h"
#include "device/virtio/virtio_pci.h"
#include "device/virtio/virtio_rng.h"
#include "engine/fake/fake.h"
#include "vm/machine_int.h"
#include "vm/state.h"

#define DISK_BYTES 0x8000u
#define HELD_MAX   1024

/* --- the backends, in place of backend/disk and backend/console --- */

struct disk {
    struct pc *pc;
    uint8_t data[DISK_BYTES];
    struct disk_request *held[HELD_MAX];
    unsigned held_count;
};

struct console {
    struct pc *pc;
    struct console_client client;
};

struct pc {
    struct machine *machine;
    struct pci_host *host;
    unsigned mood;
    struct disk disk;
    struct console serial, virtio;
    struct net net;
    bool net_paused;
    uint8_t sum; /* of what the backends got */
};

/* What a backend is given can be read to its end. */
static void read_all(struct pc *pc, const uint8_t *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++)
        pc->sum ^= bytes[i];
}

void disk_info(const struct disk *disk, struct disk_info *out)
{
    *out = (struct disk_info) {
        .size = sizeof disk->data, .can_discard = true, .block_size = 512, .io_name = "memory"};
}

static int move(struct disk *disk, struct disk_request *request)
{
    uint64_t at = request->offset;

    for (unsigned i = 0; i < request->iov_count; i++) {
        struct iovec *iov = &request->iov[i];
        if (!range_fits(at, iov->iov_len, sizeof disk->data))
            return -EINVAL;
        if (request->op == DISK_READ)
            memcpy(iov->iov_base, disk->data + at, iov->iov_len);
        else
            memcpy(disk->data + at, iov->iov_base, iov->iov_len);
        at += iov->iov_len;
    }
    return 0;
}

static void serve(struct disk *disk, struct disk_request *request)
{
    int result = disk->pc->mood & PC_DISK_FAILS ? -EIO : 0;

    if (!result && !range_fits(request->offset, request->length, sizeof disk->data))
        result = -EINVAL;
    if (!result && (request->op == DISK_READ || request->op == DISK_WRITE))
        result = move(disk, request);
    else if (!result && request->op != DISK_FLUSH)
        memset(disk->data + request->offset, 0, request->length);
    request->done(request, result);
}

void disk_submit(struct disk *disk, struct disk_request *request)
{
    if ((disk->pc->mood & PC_DISK_HOLDS) && disk->held_count < HELD_MAX)
        disk->held[disk->held_count++] = request;
    else
        serve(disk, request);
}

void disk_drain(struct disk *disk)
{
    pc_complete(disk->pc);
}

void pc_complete(struct pc *pc)
{
    struct disk *disk = &pc->disk;
    struct disk_request *held[HELD_MAX];
    unsigned count = disk->held_count;

    memcpy(held, disk->held, count * sizeof held[0]);
    disk->held_count = 0;
    for (unsigned i = 0; i < count; i++)
        serve(disk, held[i]);
}

void console_attach(struct console *console, const struct console_client *client)
{
    console->client = client ? *client : (struct console_client) {0};
}

size_t console_write(struct console *console, const uint8_t *data, size_t length)
{
    if (console->pc->mood & PC_CONSOLE_FULL)
        length = MIN(length, 3);
    read_all(console->pc, data, length);
    return length;
}

void console_kick_input(struct console *console)
{
    (void)console;
}

static int net_send(struct net *net, const struct iovec *iov, unsigned count)
{
    struct pc *pc = container_of(net, struct pc, net);

    if (pc->mood & PC_NET_FULL)
        return -EAGAIN;
    for (unsigned i = 0; i < count; i++)
        read_all(pc, iov[i].iov_base, iov[i].iov_len);
    return pc->mood & PC_NET_FAILS ? -EIO : 0;
}

static void net_pause(struct net *net, bool paused)
{
    container_of(net, struct pc, net)->net_paused = paused;
}

static const struct net_ops net_ops = {.send = net_send, .pause_receive = net_pause};

/* --- creation --- */

static void add(struct pc *pc, const struct device_class *class, const char *path,
                const void *config)
{
    struct device *device;
    struct err err = {{0}};

    if (machine_add_device(pc->machine, class, path, config, &device, &err))
        fuzz_fail("set-up: %s: %s", path, err.text);
    if (class->reset)
        class->reset(device);
}

static void add_legacy(struct pc *pc)
{
    struct serial_config serial = {
        .port = SERIAL_COM1_PORT, .irq = SERIAL_COM1_IRQ, .console = &pc->serial};
    struct debug_exit_config debug_exit = {.port = 0xf4};

    add(pc, &ioapic_class, "legacy/ioapic", NULL);
    add(pc, &pic_class, "legacy/pic", NULL);
    add(pc, &pit_class, "legacy/pit", NULL);
    add(pc, &rtc_class, "legacy/rtc", NULL);
    add(pc, &system_port_class, "legacy/system-port", NULL);
    add(pc, &i8042_class, "legacy/i8042", NULL);
    add(pc, &acpi_pm_class, "legacy/acpi-pm", NULL);
    add(pc, &fw_cfg_class, "legacy/fw-cfg", NULL);
    add(pc, &serial_class, "legacy/serial0", &serial);
    add(pc, &debug_exit_class, "legacy/debug-exit", &debug_exit);
}

static void add_pci(struct pc *pc)
{
    add(pc, &pci_host_class, "pci/00:00.0/host", NULL);
    pc->host = pci_host_of(machine_find_device(pc->machine, "pci/00:00.0/host"));
    struct pci_lpc_config lpc = {.host = pc->host};
    add(pc, &pci_lpc_class, "pci/00:1f.0/lpc", &lpc);
}

static void add_virtio(struct pc *pc)
{
    struct virtio_pci_config pci = {.host = pc->host, .slot = PC_SLOT_RNG};
    struct virtio_attach attach = {.attach = virtio_pci_attach, .config = &pci};
    struct virtio_rng_config rng = {attach};
    struct virtio_console_config console = {attach, &pc->virtio};
    struct virtio_net_config net = {
        .transport = attach, .net = &pc->net, .mac = {2, 0, 0, 0, 0, 1}};
    struct virtio_blk_config blk = {
        .transport = attach, .disk = &pc->disk, .serial = "fuzz", .queue_count = 2};

    add(pc, &virtio_rng_class, "pci/00:01.0/virtio-rng", &rng);
    pci.slot = PC_SLOT_CONSOLE;
    add(pc, &virtio_console_class, "pci/00:02.0/virtio-console", &console);
    pci.slot = PC_SLOT_NET;
    add(pc, &virtio_net_class, "pci/00:03.0/virtio-net", &net);
    pci.slot = PC_SLOT_DISK;
    add(pc, &virtio_blk_class, "pci/00:0b.0/virtio-blk", &blk);
}

void pc_quiet(void)
{
    log_set_level(LOG_ERROR);
}

struct pc *pc_create(unsigned parts)
{
    struct pc *pc = calloc(1, sizeof *pc);
    struct err err = {{0}};
    struct loop *loop;

    fuzz_must(pc);
    pc->disk.pc = pc->serial.pc = pc->virtio.pc = pc;
    pc->net.ops = &net_ops;
    fuzz_must(loop_create(&loop) == 0);
    struct machine_config config = {
        .name = "fuzz", .vcpu_count = 1, .ram_size = PC_RAM, .engine = &engine_fake, .loop = loop};
    fuzz_must(machine_create(&pc->machine, &config, &err) == 0);
    vm_clock_destroy(pc->machine->clock);
    fuzz_must(vm_clock_create_fake(&pc->machine->clock) == 0);
    if (parts & PC_LEGACY)
        add_legacy(pc);
    if (parts & (PC_PCI | PC_VIRTIO))
        add_pci(pc);
    if (parts & PC_VIRTIO)
        add_virtio(pc);
    return pc;
}

/* The disk holds nothing any more. */
static void let_go(struct pc *pc)
{
    pc->mood &= ~PC_DISK_HOLDS;
    pc_complete(pc);
}

void pc_destroy(struct pc *pc)
{
    struct loop *loop = pc->machine->loop;

    let_go(pc);
    machine_destroy(pc->machine);
    loop_destroy(loop);
    free(pc);
}

struct machine *pc_machine(struct pc *pc)
{
    return pc->machine;
}

/* --- what happens --- */

void pc_set_mood(struct pc *pc, unsigned mood)
{
    pc->mood = mood;
    if (!(mood & PC_NET_FULL) && pc->net.client.can_send)
        pc->net.client.can_send(pc->net.client.context);
    if (mood & PC_CONSOLE_FULL)
        return;
    if (pc->serial.client.can_write)
        pc->serial.client.can_write(pc->serial.client.context);
    if (pc->virtio.client.can_write)
        pc->virtio.client.can_write(pc->virtio.client.context);
}

/* A request for a reset or an end stays: nobody runs the machine. */
static void drop_request(struct pc *pc)
{
    if (atomic_exchange(&pc->machine->internal->request, REQUEST_NONE) != REQUEST_NONE)
        loop_message_cancel(pc->machine->loop, &pc->machine->internal->message.message);
}

void pc_run_loop(struct pc *pc)
{
    drop_request(pc);
    for (unsigned i = 0; i < 3; i++)
        fuzz_must(loop_run_once(pc->machine->loop, 0) >= 0);
}

void pc_advance(struct pc *pc, uint64_t ns)
{
    vm_clock_fake_advance(pc->machine->clock, ns);
}

void pc_receive(struct pc *pc, const uint8_t *frame, size_t length)
{
    if (pc->net.client.receive && !pc->net_paused)
        pc->net.client.receive(pc->net.client.context, frame, length);
}

void pc_type(struct pc *pc, const uint8_t *text, size_t length)
{
    if (pc->serial.client.input)
        pc->serial.client.input(pc->serial.client.context, text, length);
    if (pc->virtio.client.input)
        pc->virtio.client.input(pc->virtio.client.context, text, length);
}

void pc_port(struct pc *pc, struct fuzz_input *in, uint16_t port)
{
    uint8_t how = fuzz_u8(in);
    unsigned size = 1u << (how >> 1) % 3;

    if (how & 1)
        bus_write(pc->machine->pio, port, size, fuzz_u32(in) & size_mask(size));
    else
        (void)bus_read(pc->machine->pio, port, size);
    drop_request(pc);
}

void pc_access(struct pc *pc, struct fuzz_input *in, uint64_t address)
{
    uint8_t how = fuzz_u8(in);
    unsigned size = 1u << (how >> 1) % 4;

    if (how & 1)
        bus_write(pc->machine->mmio, address, size, fuzz_u64(in) & size_mask(size));
    else
        (void)bus_read(pc->machine->mmio, address, size);
}

/* --- PCI --- */

uint64_t pc_ecam(unsigned slot, unsigned offset)
{
    return MACHINE_ECAM_BASE + ((uint64_t)slot << 15) + offset;
}

uint64_t pc_bar(struct pc *pc, unsigned slot, unsigned index)
{
    uint64_t low = bus_read(pc->machine->mmio, pc_ecam(slot, PCI_BAR0 + index * 4), 4);
    uint64_t high = bus_read(pc->machine->mmio, pc_ecam(slot, PCI_BAR0 + index * 4 + 4), 4);
    return high << 32 | (low & ~0xfull);
}

void pc_enable(struct pc *pc, unsigned slot)
{
    bus_write(pc->machine->mmio, pc_ecam(slot, PCI_COMMAND), 2,
              PCI_COMMAND_MEMORY | PCI_COMMAND_BUS_MASTER);
}

/* --- states --- */

static void save(struct device *device, struct state_writer *w)
{
    state_writer_init(w);
    state_begin(w, device->path);
    device->class->save(device, w);
    state_end(w);
    fuzz_must(state_writer_result(w) == 0);
}

/* The field that position lies in: its name is where the section says. */
static const char *field_at(const struct state_writer *w, size_t position, char name[256])
{
    struct state_reader r;
    size_t offset = 0;

    fuzz_must(state_next_section(w->data, w->size, &offset, &r) == 1);
    for (const uint8_t *at = r.body; at + 6 <= r.body + r.size;) {
        size_t length = load_le32(at + 2);
        memcpy(name, at + 6, at[1]);
        name[at[1]] = 0;
        at += 6 + at[1] + length;
        if (at > w->data + position)
            break;
    }
    return name;
}

static void differs(const struct device *device, const struct state_writer *a,
                    const struct state_writer *b)
{
    char name[256];
    size_t at = 0;

    while (at < MIN(a->size, b->size) && a->data[at] == b->data[at])
        at++;
    fuzz_fail("%s: a state that was loaded is saved as another one, in %s", device->path,
              field_at(a, at, name));
}

static void load(struct device *device, const struct state_writer *from)
{
    struct state_reader r;
    struct err err = {{0}};
    size_t offset = 0;

    fuzz_must(state_next_section(from->data, from->size, &offset, &r) == 1);
    if (device->class->load(device, &r, &err) || state_reader_end(&r, &err))
        fuzz_fail("%s: its own state is refused: %s", device->path, err.text);
}

static void check_state(struct device *device)
{
    struct state_writer a, b;

    pthread_mutex_lock(&device->lock);
    save(device, &a);
    load(device, &a);
    if (strcmp(device->path, "legacy/serial0") == 0) {
        /* It takes its timers for expired. */
        state_writer_free(&a);
        save(device, &a);
        load(device, &a);
    }
    save(device, &b);
    if (a.size != b.size || memcmp(a.data, b.data, a.size) != 0)
        differs(device, &a, &b);
    pthread_mutex_unlock(&device->lock);
    state_writer_free(&a);
    state_writer_free(&b);
}

void pc_check_states(struct pc *pc)
{
    let_go(pc);
    pc_run_loop(pc);
    list_for_each (link, &pc->machine->devices) {
        struct device *device = container_of(link, struct device, link);
        if (device->class->quiesce)
            device->class->quiesce(device);
    }
    list_for_each (link, &pc->machine->devices) {
        struct device *device = container_of(link, struct device, link);
        if (device->class->save && device->class->load)
            check_state(device);
    }
}
