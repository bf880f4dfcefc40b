/*
 * fw_cfg (QEMU's docs/specs/fw_cfg.rst is its specification): selector and data ports, the file
 * directory and the DMA interface. On vCPU threads, with the device's lock held.
 *
 * What is in it belongs to the machine's configuration and is not saved; the position in it is.
 * All multi-byte DMA fields and the directory are big-endian, the numbered items little-endian.
 */
#include "device/legacy/fw_cfg.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "device/legacy/legacy_io.h"
#include "vm/machine.h"
#include "vm/memory.h"
#include "vm/platform.h"
#include "vm/state.h"

enum {
    KEY_SIGNATURE = 0x00,
    KEY_ID = 0x01,
    KEY_RAM_SIZE = 0x03,
    KEY_NO_GRAPHIC = 0x04,
    KEY_CPU_COUNT = 0x05,
    KEY_BOOT_MENU = 0x0e,
    KEY_MAX_CPUS = 0x0f,
    KEY_DIRECTORY = 0x19,
    KEY_FIRST_FILE = 0x20,
};

#define ID_TRADITIONAL  1
#define ID_DMA          2
#define DIRECTORY_ENTRY 64
#define DIRECTORY_SIZE  (4 + FW_CFG_FILES_MAX * DIRECTORY_ENTRY)
#define DMA_PADDING_MAX (1u << 20)
#define DMA_SIGNATURE   "QEMU CFG"
#define DMA_OFFSET      4
#define DMA_ERROR       0x01u
#define DMA_READ        0x02u
#define DMA_SKIP        0x04u
#define DMA_SELECT      0x08u
#define DMA_WRITE       0x10u

struct fw_cfg_file {
    char name[FW_CFG_NAME_MAX + 1];
    uint8_t *data;
    uint32_t size;
};

struct fw_cfg {
    struct device device;
    struct fw_cfg_file file[FW_CFG_FILES_MAX];
    unsigned file_count;
    uint8_t directory[DIRECTORY_SIZE];
    uint32_t directory_size;
    uint8_t ram_size[8], cpu_count[2];

    uint16_t key;
    uint32_t position;
    uint64_t dma_address; /* its high half waits here for the low one */
};

/* A stretch of bytes; data NULL: nothing. */
struct blob {
    const void *data;
    uint32_t size;
};

static struct blob item(const struct fw_cfg *f)
{
    static const uint8_t id[4] = {ID_TRADITIONAL | ID_DMA}, on[2] = {1}, off[2] = {0};
    switch (f->key) {
    case KEY_SIGNATURE:
        return (struct blob) {"QEMU", 4};
    case KEY_ID:
        return (struct blob) {id, sizeof id};
    case KEY_RAM_SIZE:
        return (struct blob) {f->ram_size, sizeof f->ram_size};
    case KEY_NO_GRAPHIC:
        return (struct blob) {on, sizeof on};
    case KEY_BOOT_MENU:
        return (struct blob) {off, sizeof off};
    case KEY_CPU_COUNT:
    case KEY_MAX_CPUS:
        return (struct blob) {f->cpu_count, sizeof f->cpu_count};
    case KEY_DIRECTORY:
        return (struct blob) {f->directory, f->directory_size};
    default:
        break;
    }
    unsigned index = f->key - KEY_FIRST_FILE;
    if (f->key >= KEY_FIRST_FILE && index < f->file_count)
        return (struct blob) {f->file[index].data, f->file[index].size};
    return (struct blob) {NULL, 0};
}

static void select_item(struct fw_cfg *f, uint16_t key)
{
    f->key = key;
    f->position = 0;
}

/* Up to length of the bytes from the position on; the position moves behind them. */
static struct blob take(struct fw_cfg *f, uint32_t length)
{
    struct blob all = item(f);
    if (f->position >= all.size)
        return (struct blob) {NULL, 0};
    struct blob part = {(const uint8_t *)all.data + f->position,
                        MIN(length, all.size - f->position)};
    f->position += part.size;
    return part;
}

/* --- DMA --- */

/* What is behind an item's end reads as zeros; a handler must not clear gigabytes for it. */
static int dma_read(struct fw_cfg *f, uint64_t address, uint32_t length)
{
    struct guest_memory *memory = f->device.machine->memory;
    uint32_t position = f->position;
    struct blob part = take(f, length);
    int error = length - part.size > DMA_PADDING_MAX ? -E2BIG : 0;
    if (!error && part.size)
        error = guest_memory_write(memory, gpa(address), part.data, part.size);
    if (!error && length > part.size)
        error = guest_memory_fill(memory, gpa(address + part.size), 0, length - part.size);
    if (error)
        f->position = position;
    return error;
}

/* The transfer that the guest's 16-byte structure asks for; its result goes into the structure. */
static void dma_run(struct fw_cfg *f, uint64_t structure)
{
    uint8_t request[16];
    struct guest_memory *memory = f->device.machine->memory;
    if (guest_memory_read(memory, gpa(structure), request, sizeof request)) {
        device_guest_error(&f->device, "DMA structure at 0x%llx is not in RAM",
                           (unsigned long long)structure);
        return;
    }
    uint32_t control = __builtin_bswap32(load_le32(request));
    uint32_t length = __builtin_bswap32(load_le32(request + 4));
    uint64_t address = __builtin_bswap64(load_le64(request + 8));
    bool failed = false;
    if (control & DMA_SELECT)
        select_item(f, (uint16_t)(control >> 16));
    if (control & DMA_READ)
        failed = dma_read(f, address, length) != 0;
    else if (control & DMA_WRITE)
        failed = true; /* no item can be written */
    else if (control & DMA_SKIP)
        take(f, length);
    uint32_t result = __builtin_bswap32(failed ? DMA_ERROR : 0);
    if (failed)
        device_guest_error(&f->device, "DMA of %u bytes at 0x%llx failed", length,
                           (unsigned long long)address);
    if (guest_memory_write(memory, gpa(structure), &result, sizeof result))
        device_guest_error(&f->device, "DMA result cannot be written");
}

static void dma_write(struct fw_cfg *f, uint64_t offset, unsigned size, uint32_t value)
{
    if (size != 4)
        return;
    uint32_t half = __builtin_bswap32(value);
    if (offset == DMA_OFFSET) {
        f->dma_address = (uint64_t)half << 32;
    } else if (offset == DMA_OFFSET + 4) {
        uint64_t structure = f->dma_address | half;
        f->dma_address = 0;
        dma_run(f, structure);
    }
}

/* --- ports: 0 selector (16 bits), 1 data (8 bits), 4 to 11 DMA address --- */

static uint64_t fw_cfg_read(void *context, uint64_t offset, unsigned size)
{
    struct fw_cfg *f = context;
    if (offset >= DMA_OFFSET) {
        uint64_t value = 0;
        for (unsigned i = 0; i < size && offset - DMA_OFFSET + i < 8; i++)
            value |= (uint64_t)(uint8_t)DMA_SIGNATURE[offset - DMA_OFFSET + i] << (8 * i);
        return value;
    }
    if (offset != 1)
        return offset == 0 && size == 2 ? f->key : 0;
    struct blob byte = take(f, 1);
    return byte.size ? *(const uint8_t *)byte.data : 0;
}

static void fw_cfg_write(void *context, uint64_t offset, unsigned size, uint64_t value)
{
    struct fw_cfg *f = context;
    if (offset >= DMA_OFFSET)
        dma_write(f, offset, size, (uint32_t)value);
    else if (offset == 0 && size == 2)
        select_item(f, (uint16_t)value);
}

static const struct bus_ops fw_cfg_ops = {fw_cfg_read, fw_cfg_write};
static const struct legacy_range fw_cfg_range = {PLATFORM_FW_CFG_PORT, 12, &fw_cfg_ops};

/* --- files --- */

static void build_directory(struct fw_cfg *f)
{
    uint8_t *at = f->directory;
    store_le32(at, __builtin_bswap32(f->file_count));
    at += 4;
    for (unsigned i = 0; i < f->file_count; i++, at += DIRECTORY_ENTRY) {
        memset(at, 0, DIRECTORY_ENTRY);
        store_le32(at, __builtin_bswap32(f->file[i].size));
        store_le16(at + 4, __builtin_bswap16((uint16_t)(KEY_FIRST_FILE + i)));
        memcpy(at + 8, f->file[i].name, strlen(f->file[i].name));
    }
    f->directory_size = (uint32_t)(at - f->directory);
}

static struct fw_cfg_file *find_or_add(struct fw_cfg *f, const char *name)
{
    for (unsigned i = 0; i < f->file_count; i++)
        if (strcmp(f->file[i].name, name) == 0)
            return &f->file[i];
    if (f->file_count == FW_CFG_FILES_MAX)
        return NULL;
    struct fw_cfg_file *file = &f->file[f->file_count++];
    *file = (struct fw_cfg_file) {0};
    memcpy(file->name, name, strlen(name) + 1);
    return file;
}

int fw_cfg_set_file(struct device *device, const char *name, const void *data, uint32_t size)
{
    struct fw_cfg *f = container_of(device, struct fw_cfg, device);
    if (strlen(name) > FW_CFG_NAME_MAX)
        return -ENAMETOOLONG;
    uint8_t *copy = malloc(size ? size : 1);
    if (!copy)
        return -ENOMEM;
    memcpy(copy, data, size);
    pthread_mutex_lock(&device->lock);
    struct fw_cfg_file *file = find_or_add(f, name);
    if (file) {
        free(file->data);
        file->data = copy;
        file->size = size;
        build_directory(f);
    }
    pthread_mutex_unlock(&device->lock);
    if (!file)
        free(copy);
    return file ? 0 : -ENOSPC;
}

/* --- the device --- */

static void fw_cfg_reset(struct device *device)
{
    struct fw_cfg *f = container_of(device, struct fw_cfg, device);
    select_item(f, KEY_SIGNATURE);
    f->dma_address = 0;
}

static int fw_cfg_create(struct device *device, const void *config, struct err *err)
{
    struct fw_cfg *f = container_of(device, struct fw_cfg, device);
    const struct machine_config *machine = &device->machine->config;
    (void)config;
    store_le64(f->ram_size, machine->ram_size);
    store_le16(f->cpu_count, (uint16_t)machine->vcpu_count);
    build_directory(f);
    return legacy_io_add(device, device->machine->pio, &fw_cfg_range, 1, true, err);
}

static void fw_cfg_destroy(struct device *device)
{
    struct fw_cfg *f = container_of(device, struct fw_cfg, device);
    legacy_io_remove(device->machine->pio, &fw_cfg_range, 1);
    for (unsigned i = 0; i < f->file_count; i++)
        free(f->file[i].data);
}

static void fw_cfg_save(struct device *device, struct state_writer *w)
{
    struct fw_cfg *f = container_of(device, struct fw_cfg, device);
    state_put_field(w, f, key);
    state_put_field(w, f, position);
    state_put_field(w, f, dma_address);
}

static int fw_cfg_load(struct device *device, struct state_reader *r, struct err *err)
{
    struct fw_cfg *f = container_of(device, struct fw_cfg, device);
    (void)err;
    state_get_field(r, f, key);
    state_get_field(r, f, position);
    state_get_field(r, f, dma_address);
    return 0;
}

const struct device_class fw_cfg_class = {
    .name = "fw-cfg",
    .size = sizeof(struct fw_cfg),
    .create = fw_cfg_create,
    .reset = fw_cfg_reset,
    .save = fw_cfg_save,
    .load = fw_cfg_load,
    .destroy = fw_cfg_destroy,
};
