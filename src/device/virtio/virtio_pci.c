/*
 * virtio over PCI (virtio 1.2 section 4.1), modern devices only: the capabilities, the registers in
 * BAR 0, interrupts by MSI-X or INTx. Registers: vCPU threads; interrupts: any thread; device lock
 * held.
 */
#include "device/virtio/virtio_pci.h"

#include <errno.h>
#include <stdlib.h>

#include "device/pci/pci.h"
#include "device/virtio/virtio_pci_bells.h"
#include "vm/machine.h"
#include "vm/state.h"

#define VENDOR       0x1af4
#define DEVICE_BASE  0x1040 /* + virtio device type (4.1.2.1) */
#define SUBSYSTEM    0x1100
#define ISR_QUEUE    1
#define ISR_CONFIG   2
#define CAP_SIZE     16 /* struct virtio_pci_cap with id and next */
#define CAP_PCI_DATA 16 /* pci_cfg_data, behind it */
#define CAP_BAR      4
#define CAP_OFFSET   8
#define CAP_LENGTH   12

struct virtio_pci {
    struct virtio_device *virtio;
    struct pci_function function;
    unsigned access_cap; /* the PCI configuration access capability */
    uint32_t device_feature_select, driver_feature_select;
    uint16_t queue_select;
    uint16_t config_vector;
    uint16_t queue_vector[VIRTIO_QUEUES_MAX];
    uint8_t isr;
    struct virtio_pci_bells bells;
};

static struct virtqueue *selected(struct virtio_pci *pci)
{
    struct virtio_device *virtio = pci->virtio;
    return pci->queue_select < virtio->queue_count ? &virtio->queue[pci->queue_select] : NULL;
}

/* --- common configuration: the registers, each with its own size --- */

struct reg {
    uint8_t offset, size;
    uint64_t (*read)(struct virtio_pci *pci);
    void (*write)(struct virtio_pci *pci, uint64_t value); /* NULL: read-only */
};

static uint64_t read_device_feature_select(struct virtio_pci *pci)
{
    return pci->device_feature_select;
}

static void write_device_feature_select(struct virtio_pci *pci, uint64_t value)
{
    pci->device_feature_select = (uint32_t)value;
}

static uint64_t read_device_feature(struct virtio_pci *pci)
{
    unsigned word = pci->device_feature_select;
    return word < 2 ? (uint32_t)(pci->virtio->offered_features >> (word * 32)) : 0;
}

static uint64_t read_driver_feature_select(struct virtio_pci *pci)
{
    return pci->driver_feature_select;
}

static void write_driver_feature_select(struct virtio_pci *pci, uint64_t value)
{
    pci->driver_feature_select = (uint32_t)value;
}

static uint64_t read_driver_feature(struct virtio_pci *pci)
{
    unsigned word = pci->driver_feature_select;
    return word < 2 ? (uint32_t)(pci->virtio->driver_features >> (word * 32)) : 0;
}

static void write_driver_feature(struct virtio_pci *pci, uint64_t value)
{
    virtio_set_driver_features(pci->virtio, pci->driver_feature_select, (uint32_t)value);
}

/* 4.1.5.1.2.1: a vector that does not exist reads back as NO_VECTOR. */
static uint16_t usable_vector(const struct virtio_pci *pci, uint64_t value)
{
    return value < pci->function.msix.count ? (uint16_t)value : VIRTIO_PCI_NO_VECTOR;
}

static uint64_t read_config_vector(struct virtio_pci *pci)
{
    return pci->config_vector;
}

static void write_config_vector(struct virtio_pci *pci, uint64_t value)
{
    pci->config_vector = usable_vector(pci, value);
}

static uint64_t read_num_queues(struct virtio_pci *pci)
{
    return pci->virtio->queue_count;
}

static uint64_t read_status(struct virtio_pci *pci)
{
    return pci->virtio->status;
}

static void write_status(struct virtio_pci *pci, uint64_t value)
{
    virtio_set_status(pci->virtio, (uint8_t)value);
}

static uint64_t read_generation(struct virtio_pci *pci)
{
    return pci->virtio->config_generation;
}

static uint64_t read_queue_select(struct virtio_pci *pci)
{
    return pci->queue_select;
}

static void write_queue_select(struct virtio_pci *pci, uint64_t value)
{
    pci->queue_select = (uint16_t)value;
}

static uint64_t read_queue_size(struct virtio_pci *pci)
{
    return selected(pci)->size;
}

static void write_queue_size(struct virtio_pci *pci, uint64_t value)
{
    struct virtqueue *queue = selected(pci);
    if (!queue->enabled && value && value <= queue->size_max && !(value & (value - 1)))
        queue->size = (uint16_t)value;
    else
        device_guest_error(&pci->virtio->device, "queue size %u", (unsigned)value);
}

static uint64_t read_queue_vector(struct virtio_pci *pci)
{
    return pci->queue_vector[pci->queue_select];
}

static void write_queue_vector(struct virtio_pci *pci, uint64_t value)
{
    pci->queue_vector[pci->queue_select] = usable_vector(pci, value);
}

static uint64_t read_queue_enable(struct virtio_pci *pci)
{
    return selected(pci)->enabled;
}

static void write_queue_enable(struct virtio_pci *pci, uint64_t value)
{
    if (value == 1)
        virtio_enable_queue(pci->virtio, selected(pci));
}

static uint64_t read_notify_off(struct virtio_pci *pci)
{
    return pci->queue_select;
}

static uint64_t read_queue_desc(struct virtio_pci *pci)
{
    return selected(pci)->descriptors.v;
}

static uint64_t read_queue_driver(struct virtio_pci *pci)
{
    return selected(pci)->avail.v;
}

static uint64_t read_queue_device(struct virtio_pci *pci)
{
    return selected(pci)->used.v;
}

/* An enabled queue keeps its rings. */
static void set_ring(struct virtio_pci *pci, gpa_t *ring, uint64_t value)
{
    if (!selected(pci)->enabled)
        *ring = gpa(value);
}

static void write_queue_desc(struct virtio_pci *pci, uint64_t value)
{
    set_ring(pci, &selected(pci)->descriptors, value);
}

static void write_queue_driver(struct virtio_pci *pci, uint64_t value)
{
    set_ring(pci, &selected(pci)->avail, value);
}

static void write_queue_device(struct virtio_pci *pci, uint64_t value)
{
    set_ring(pci, &selected(pci)->used, value);
}

/* Those from QUEUE_SIZE on exist once per queue and need a valid queue_select. */
static const struct reg common_regs[] = {
    {VIRTIO_PCI_DEVICE_FEATURE_SELECT, 4, read_device_feature_select, write_device_feature_select},
    {VIRTIO_PCI_DEVICE_FEATURE, 4, read_device_feature, NULL},
    {VIRTIO_PCI_DRIVER_FEATURE_SELECT, 4, read_driver_feature_select, write_driver_feature_select},
    {VIRTIO_PCI_DRIVER_FEATURE, 4, read_driver_feature, write_driver_feature},
    {VIRTIO_PCI_CONFIG_MSIX_VECTOR, 2, read_config_vector, write_config_vector},
    {VIRTIO_PCI_NUM_QUEUES, 2, read_num_queues, NULL},
    {VIRTIO_PCI_DEVICE_STATUS, 1, read_status, write_status},
    {VIRTIO_PCI_CONFIG_GENERATION, 1, read_generation, NULL},
    {VIRTIO_PCI_QUEUE_SELECT, 2, read_queue_select, write_queue_select},
    {VIRTIO_PCI_QUEUE_SIZE, 2, read_queue_size, write_queue_size},
    {VIRTIO_PCI_QUEUE_MSIX_VECTOR, 2, read_queue_vector, write_queue_vector},
    {VIRTIO_PCI_QUEUE_ENABLE, 2, read_queue_enable, write_queue_enable},
    {VIRTIO_PCI_QUEUE_NOTIFY_OFF, 2, read_notify_off, NULL},
    {VIRTIO_PCI_QUEUE_DESC, 8, read_queue_desc, write_queue_desc},
    {VIRTIO_PCI_QUEUE_DRIVER, 8, read_queue_driver, write_queue_driver},
    {VIRTIO_PCI_QUEUE_DEVICE, 8, read_queue_device, write_queue_device},
};

/* Accesses have the register's width; 64-bit ones may come in two halves (4.1.3.1). */
static const struct reg *find_reg(struct virtio_pci *pci, uint64_t offset, unsigned size)
{
    for (size_t i = 0; i < ARRAY_COUNT(common_regs); i++) {
        const struct reg *reg = &common_regs[i];
        bool whole = offset == reg->offset && size == reg->size;
        bool half =
            reg->size == 8 && size == 4 && (offset == reg->offset || offset == reg->offset + 4u);
        if (whole || half)
            return reg->offset < VIRTIO_PCI_QUEUE_SIZE || selected(pci) ? reg : NULL;
    }
    return NULL;
}

static uint64_t common_read(struct virtio_pci *pci, uint64_t offset, unsigned size)
{
    const struct reg *reg = find_reg(pci, offset, size);
    return reg ? reg->read(pci) >> ((offset - reg->offset) * 8) : 0;
}

static void common_write(struct virtio_pci *pci, uint64_t offset, unsigned size, uint64_t value)
{
    const struct reg *reg = find_reg(pci, offset, size);
    if (!reg || !reg->write) {
        device_guest_error(&pci->virtio->device, "write of %u bytes to common register %#llx", size,
                           (unsigned long long)offset);
        return;
    }
    unsigned shift = (unsigned)(offset - reg->offset) * 8;
    if (size < reg->size)
        value = (reg->read(pci) & ~(size_mask(size) << shift)) | value << shift;
    reg->write(pci, value);
}

/* --- BAR 0 --- */

static void set_isr(struct virtio_pci *pci, uint8_t isr)
{
    pci->isr = isr;
    pci_set_intx(&pci->function, isr != 0);
}

/* 4.1.4.5: reading the ISR clears it and takes INTx back. */
static uint64_t isr_read(struct virtio_pci *pci, uint64_t offset)
{
    uint8_t isr = pci->isr;
    if (offset != 0)
        return 0;
    set_isr(pci, 0);
    return isr;
}

static uint64_t bar_read(void *context, uint64_t offset, unsigned size)
{
    struct virtio_pci *pci = context;
    if (offset < VIRTIO_PCI_ISR)
        return common_read(pci, offset, size);
    if (offset < VIRTIO_PCI_DEVICE)
        return isr_read(pci, offset - VIRTIO_PCI_ISR);
    if (offset < VIRTIO_PCI_NOTIFY)
        return virtio_config_read(pci->virtio, offset - VIRTIO_PCI_DEVICE, size);
    return 0;
}

static void bar_write(void *context, uint64_t offset, unsigned size, uint64_t value)
{
    struct virtio_pci *pci = context;
    if (offset >= VIRTIO_PCI_NOTIFY) /* the place tells the queue (4.1.4.4) */
        virtio_notify(pci->virtio,
                      (unsigned)(offset - VIRTIO_PCI_NOTIFY) / VIRTIO_PCI_NOTIFY_FACTOR);
    else if (offset >= VIRTIO_PCI_DEVICE)
        virtio_config_write(pci->virtio, offset - VIRTIO_PCI_DEVICE, size, (uint32_t)value);
    else if (offset < VIRTIO_PCI_ISR)
        common_write(pci, offset, size, value);
}

static const struct bus_ops bar_ops = {.read = bar_read, .write = bar_write};

/* --- PCI configuration access capability (4.1.4.9): BAR 0 through config space --- */

struct window {
    unsigned bar, size;
    uint32_t offset;
};

/* What the guest wrote into the capability; false when it is not a valid access. */
static bool access_window(const struct virtio_pci *pci, struct window *out)
{
    const uint8_t *cap = pci->function.config + pci->access_cap;
    *out = (struct window) {cap[CAP_BAR], load_le32(cap + CAP_LENGTH), load_le32(cap + CAP_OFFSET)};
    return (out->size == 1 || out->size == 2 || out->size == 4) && out->offset % out->size == 0;
}

static bool touches_data(const struct virtio_pci *pci, unsigned offset, unsigned size)
{
    return ranges_overlap(offset, size, pci->access_cap + CAP_PCI_DATA, 4);
}

static void config_reading(struct pci_function *function, unsigned offset, unsigned size)
{
    struct virtio_pci *pci = container_of(function, struct virtio_pci, function);
    struct window window;
    if (!touches_data(pci, offset, size) || !access_window(pci, &window))
        return;
    store_le32(function->config + pci->access_cap + CAP_PCI_DATA,
               (uint32_t)pci_bar_read(function, window.bar, window.offset, window.size));
}

static void config_written(struct pci_function *function, unsigned offset, unsigned size)
{
    struct virtio_pci *pci = container_of(function, struct virtio_pci, function);
    struct window window;
    if (touches_data(pci, offset, size) && access_window(pci, &window))
        pci_bar_write(function, window.bar, window.offset, window.size,
                      load_le32(function->config + pci->access_cap + CAP_PCI_DATA));
}

static void bus_master_changed(struct pci_function *function, bool on)
{
    virtio_set_dma(container_of(function, struct virtio_pci, function)->virtio, on);
}

static const struct pci_function_ops function_ops = {
    .config_reading = config_reading,
    .config_written = config_written,
    .bus_master_changed = bus_master_changed,
};

/* --- transport operations --- */

static void interrupt_queue(void *transport, unsigned queue)
{
    struct virtio_pci *pci = transport;
    if (pci_msix_enabled(&pci->function))
        pci_msix_notify(&pci->function, pci->queue_vector[queue]);
    else
        set_isr(pci, pci->isr | ISR_QUEUE);
}

static void interrupt_config(void *transport)
{
    struct virtio_pci *pci = transport;
    set_isr(pci, pci->isr | ISR_CONFIG);
    pci_msix_notify(&pci->function, pci->config_vector);
}

static void transport_device_reset(void *transport)
{
    struct virtio_pci *pci = transport;
    pci->device_feature_select = pci->driver_feature_select = 0;
    pci->queue_select = 0;
    pci->config_vector = VIRTIO_PCI_NO_VECTOR;
    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++)
        pci->queue_vector[i] = VIRTIO_PCI_NO_VECTOR;
    set_isr(pci, 0);
}

static void transport_reset(void *transport)
{
    struct virtio_pci *pci = transport;
    transport_device_reset(pci);
    pci_function_reset(&pci->function);
    virtio_set_dma(pci->virtio, false);
}

static void transport_save(void *transport, struct state_writer *w)
{
    struct virtio_pci *pci = transport;
    pci_function_save(&pci->function, w);
    state_put_field(w, pci, device_feature_select);
    state_put_field(w, pci, driver_feature_select);
    state_put_field(w, pci, queue_select);
    state_put_field(w, pci, config_vector);
    state_put(w, "queue_vectors", pci->queue_vector,
              pci->virtio->queue_count * sizeof pci->queue_vector[0]);
    state_put_field(w, pci, isr);
}

static int transport_load(void *transport, struct state_reader *r, struct err *err)
{
    struct virtio_pci *pci = transport;
    state_get_field(r, pci, device_feature_select);
    state_get_field(r, pci, driver_feature_select);
    state_get_field(r, pci, queue_select);
    state_get_field(r, pci, config_vector);
    state_get(r, "queue_vectors", pci->queue_vector,
              pci->virtio->queue_count * sizeof pci->queue_vector[0]);
    state_get_field(r, pci, isr);
    pci->config_vector = usable_vector(pci, pci->config_vector);
    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++)
        pci->queue_vector[i] = usable_vector(pci, pci->queue_vector[i]);
    int error = pci_function_load(&pci->function, r, err);
    virtio_set_dma(pci->virtio, pci_bus_master(&pci->function));
    return error;
}

static void transport_destroy(void *transport)
{
    struct virtio_pci *pci = transport;
    pci_function_destroy(&pci->function);
    virtio_pci_bells_destroy(&pci->bells);
    free(pci);
}

static const struct virtio_transport_ops transport_ops = {
    .interrupt_queue = interrupt_queue,
    .interrupt_config = interrupt_config,
    .device_reset = transport_device_reset,
    .reset = transport_reset,
    .save = transport_save,
    .load = transport_load,
    .destroy = transport_destroy,
};

/* --- creation --- */

/* One vendor capability: a part of BAR 0, or the window onto it; extra follows the common bytes. */
static unsigned add_capability(struct virtio_pci *pci, uint8_t type, uint32_t offset,
                               uint32_t length, unsigned extra, uint32_t extra_value)
{
    uint8_t cap[CAP_SIZE + 4] = {0};
    cap[2] = (uint8_t)(CAP_SIZE + extra);
    cap[3] = type;
    cap[CAP_BAR] = VIRTIO_PCI_BAR;
    store_le32(cap + CAP_OFFSET, offset);
    store_le32(cap + CAP_LENGTH, length);
    store_le32(cap + CAP_SIZE, extra_value);
    return pci_function_add_capability(&pci->function, PCI_CAPABILITY_VENDOR, cap + 2,
                                       CAP_SIZE - 2 + extra);
}

static void add_access_capability(struct virtio_pci *pci)
{
    pci->access_cap = add_capability(pci, VIRTIO_PCI_CAP_PCI, 0, 0, 4, 0);
    pci_function_set_writable(&pci->function, pci->access_cap + CAP_BAR, 1);
    pci_function_set_writable(&pci->function, pci->access_cap + CAP_OFFSET, 12);
}

static int add_parts(struct virtio_pci *pci)
{
    unsigned queues = pci->virtio->queue_count;
    int error = pci_function_add_bar(&pci->function, VIRTIO_PCI_BAR, PCI_BAR_MEM64,
                                     VIRTIO_PCI_BAR_SIZE, &bar_ops, pci);
    if (!error)
        error = pci_function_add_msix(&pci->function, VIRTIO_PCI_MSIX_BAR, queues + 1);
    if (error)
        return error;
    add_access_capability(pci);
    if (pci->virtio->config_size)
        add_capability(pci, VIRTIO_PCI_CAP_DEVICE, VIRTIO_PCI_DEVICE, pci->virtio->config_size, 0,
                       0);
    add_capability(pci, VIRTIO_PCI_CAP_ISR, VIRTIO_PCI_ISR, 1, 0, 0);
    add_capability(pci, VIRTIO_PCI_CAP_NOTIFY, VIRTIO_PCI_NOTIFY, queues * VIRTIO_PCI_NOTIFY_FACTOR,
                   4, VIRTIO_PCI_NOTIFY_FACTOR);
    add_capability(pci, VIRTIO_PCI_CAP_COMMON, VIRTIO_PCI_COMMON, VIRTIO_PCI_COMMON_SIZE, 0, 0);
    return 0;
}

static uint32_t class_code(uint16_t id)
{
    switch (id) {
    case VIRTIO_ID_NET:
        return 0x020000; /* Ethernet controller */
    case VIRTIO_ID_BLOCK:
        return 0x018000; /* mass storage, other */
    case VIRTIO_ID_CONSOLE:
        return 0x078000; /* communication, other */
    default:
        return 0xff0000; /* fits no class */
    }
}

int virtio_pci_attach(struct virtio_device *virtio, const void *config, struct err *err)
{
    const struct virtio_pci_config *pci_config = config;
    const struct pci_id id = {.vendor = VENDOR,
                              .device = (uint16_t)(DEVICE_BASE + virtio->ops->id),
                              .subsystem_vendor = VENDOR,
                              .subsystem = SUBSYSTEM,
                              .class_code = class_code(virtio->ops->id),
                              .revision = 1,
                              .has_intx = true};
    struct virtio_pci *pci = calloc(1, sizeof *pci);
    if (!pci)
        return err_set(err, ENOMEM, "%s: out of memory", virtio->device.path);
    pci->virtio = virtio;
    int error = pci_function_init(&pci->function, &virtio->device, pci_config->host,
                                  pci_config->slot, &id, err);
    if (error)
        goto free_pci;
    pci->function.ops = &function_ops;
    error = add_parts(pci);
    if (error) {
        err_set(err, -error, "%s: no room for its PCI registers", virtio->device.path);
        goto destroy_function;
    }
    error = virtio_pci_bells_create(&pci->bells, virtio, &pci->function, err);
    if (error)
        goto destroy_function;
    transport_device_reset(pci);
    virtio->transport_ops = &transport_ops;
    virtio->transport = pci;
    return 0;

destroy_function:
    pci_function_destroy(&pci->function);
free_pci:
    free(pci);
    return error;
}
