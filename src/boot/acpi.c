/* The machine's ACPI tables (acpi.h): all but the DSDT's body, and where they go. */
#include "boot/acpi.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "boot/aml.h"
#include "boot/boot_int.h"
#include "vm/platform.h"

#define HEADER_SIZE     36
#define TABLES_MAX      8
#define FACS_SIZE       64
#define FADT_SIZE       276
#define LOCAL_APIC_BASE 0xfee00000u

/* Tables grow in one buffer; references between them are offsets until they are placed. */
struct builder {
    struct aml out;
    struct acpi_tables *tables;
    uint32_t listed[TABLES_MAX]; /* offsets of what RSDT and XSDT point at */
    unsigned listed_count;
    bool failed;
};

static void put(struct builder *b, const void *data, size_t size)
{
    aml_bytes(&b->out, data, size);
}

static void put_integer(struct builder *b, uint64_t value, unsigned size)
{
    put(b, &value, size);
}

static void add_patch(struct builder *b, const struct acpi_patch *patch)
{
    if (b->tables->patch_count == ACPI_PATCHES_MAX)
        b->failed = true;
    else
        b->tables->patch[b->tables->patch_count++] = *patch;
}

static void patch_pointer(struct builder *b, enum acpi_blob blob, size_t offset, unsigned size)
{
    add_patch(
        b, &(struct acpi_patch) {
               .kind = ACPI_PATCH_POINTER, .blob = blob, .offset = (uint32_t)offset, .size = size});
}

static void patch_checksum(struct builder *b, enum acpi_blob blob, size_t at, size_t start,
                           size_t length)
{
    add_patch(b, &(struct acpi_patch) {.kind = ACPI_PATCH_CHECKSUM,
                                       .blob = blob,
                                       .offset = (uint32_t)at,
                                       .start = (uint32_t)start,
                                       .length = (uint32_t)length});
}

static void align(struct builder *b, size_t to)
{
    while (b->out.size % to && !b->out.failed)
        aml_byte(&b->out, 0);
}

/* --- the common header --- */

static size_t begin_table(struct builder *b, const char *signature, uint8_t revision)
{
    uint8_t header[HEADER_SIZE] = {0};
    align(b, 16);
    size_t start = b->out.size;
    memcpy(header, signature, 4);
    header[8] = revision;
    memcpy(header + 10, "PARAT ", 6);
    memcpy(header + 16, "Q35-1   ", 8);
    store_le32(header + 24, 1);
    memcpy(header + 28, "PRAT", 4);
    store_le32(header + 32, 1);
    put(b, header, sizeof header);
    return start;
}

static void end_table(struct builder *b, size_t start)
{
    if (b->out.failed)
        return;
    store_le32(b->out.data + start + 4, (uint32_t)(b->out.size - start));
    patch_checksum(b, ACPI_BLOB_TABLES, start + 9, start, b->out.size - start);
}

static void list_table(struct builder *b, size_t start)
{
    if (b->listed_count == TABLES_MAX)
        b->failed = true;
    else
        b->listed[b->listed_count++] = (uint32_t)start;
}

/* --- the tables --- */

static size_t build_facs(struct builder *b)
{
    uint8_t facs[FACS_SIZE] = {0};
    align(b, 64);
    size_t start = b->out.size;
    memcpy(facs, "FACS", 4);
    store_le32(facs + 4, sizeof facs);
    facs[32] = 2; /* version */
    put(b, facs, sizeof facs);
    return start;
}

static size_t build_dsdt(struct builder *b, const struct acpi_config *config)
{
    size_t start = begin_table(b, "DSDT", 2);
    acpi_dsdt_body(&b->out, config);
    end_table(b, start);
    return start;
}

/* Generic address structure of an I/O register. */
static void io_register(uint8_t *at, unsigned port, unsigned bytes, unsigned access)
{
    at[0] = 1; /* system I/O */
    at[1] = (uint8_t)(bytes * 8);
    at[2] = 0;
    at[3] = (uint8_t)access; /* 1: byte, 2: word, 3: dword */
    store_le64(at + 4, port);
}

/* Offsets from the table's start, ACPI 6.4 table 5.9. */
static void fill_fadt_blocks(uint8_t *t)
{
    store_le16(t + 46, PLATFORM_SCI_LINE);
    store_le32(t + 56, PLATFORM_PM1_EVT);
    store_le32(t + 64, PLATFORM_PM1_CNT);
    store_le32(t + 76, PLATFORM_PM_TMR);
    store_le32(t + 80, PLATFORM_GPE0);
    t[88] = 4; /* PM1_EVT_LEN */
    t[89] = 2; /* PM1_CNT_LEN */
    t[91] = 4; /* PM_TMR_LEN */
    t[92] = PLATFORM_GPE0_SIZE;
    io_register(t + 116, PLATFORM_RESET_PORT, 1, 1);
    t[128] = PLATFORM_RESET_VALUE;
    io_register(t + 148, PLATFORM_PM1_EVT, 4, 2);
    io_register(t + 172, PLATFORM_PM1_CNT, 2, 2);
    io_register(t + 208, PLATFORM_PM_TMR, 4, 3);
    io_register(t + 220, PLATFORM_GPE0, PLATFORM_GPE0_SIZE, 1);
}

#define FADT_WBINVD       BIT(0)
#define FADT_C1           BIT(2)
#define FADT_NO_SLEEP_BTN BIT(5) /* no fixed-feature sleep button */
#define FADT_NO_RTC_WAKE  BIT(6)
#define FADT_RESET_REG    BIT(10)
#define BOOT_LEGACY       BIT(0)
#define BOOT_8042         BIT(1)
#define BOOT_NO_VGA       BIT(2)
#define BOOT_NO_ASPM      BIT(4)

static size_t build_fadt(struct builder *b, size_t facs, size_t dsdt)
{
    uint8_t t[FADT_SIZE] = {0};
    size_t start = begin_table(b, "FACP", 6);
    store_le32(t + 36, (uint32_t)facs);
    store_le32(t + 40, (uint32_t)dsdt);
    fill_fadt_blocks(t);
    store_le16(t + 96, 0xfff); /* no C2 */
    store_le16(t + 98, 0xfff); /* no C3 */
    t[108] = PLATFORM_CMOS_CENTURY;
    store_le16(t + 109, BOOT_LEGACY | BOOT_8042 | BOOT_NO_VGA | BOOT_NO_ASPM);
    store_le32(t + 112,
               FADT_WBINVD | FADT_C1 | FADT_NO_SLEEP_BTN | FADT_NO_RTC_WAKE | FADT_RESET_REG);
    t[131] = 4; /* 6.4 */
    store_le64(t + 140, dsdt);
    memcpy(t + 268, "parat", 5); /* hypervisor vendor */
    put(b, t + HEADER_SIZE, sizeof t - HEADER_SIZE);
    patch_pointer(b, ACPI_BLOB_TABLES, start + 36, 4);
    patch_pointer(b, ACPI_BLOB_TABLES, start + 40, 4);
    patch_pointer(b, ACPI_BLOB_TABLES, start + 140, 8);
    end_table(b, start);
    return start;
}

static void madt_override(struct builder *b, uint8_t irq, uint32_t gsi, uint16_t flags)
{
    uint8_t entry[10] = {2, sizeof entry, 0, irq};
    store_le32(entry + 4, gsi);
    store_le16(entry + 8, flags);
    put(b, entry, sizeof entry);
}

static void madt_processor(struct builder *b, unsigned id)
{
    if (id < 255) {
        const uint8_t entry[8] = {0, sizeof entry, (uint8_t)id, (uint8_t)id, 1};
        put(b, entry, sizeof entry);
        return;
    }
    uint8_t entry[16] = {9, sizeof entry}; /* local x2APIC */
    store_le32(entry + 4, id);
    store_le32(entry + 8, 1);
    store_le32(entry + 12, id);
    put(b, entry, sizeof entry);
}

static size_t build_madt(struct builder *b, const struct acpi_config *config)
{
    size_t start = begin_table(b, "APIC", 5);
    put_integer(b, LOCAL_APIC_BASE, 4);
    put_integer(b, 1, 4); /* there are two 8259s as well */
    for (unsigned i = 0; i < config->vcpu_count; i++)
        madt_processor(b, i);
    uint8_t ioapic[12] = {1, sizeof ioapic};
    store_le32(ioapic + 4, (uint32_t)MACHINE_IOAPIC_BASE);
    put(b, ioapic, sizeof ioapic);
    madt_override(b, 0, 2, 0);                                    /* the timer is at pin 2 */
    madt_override(b, PLATFORM_SCI_LINE, PLATFORM_SCI_LINE, 0x0d); /* active high, level */
    const uint8_t nmi[6] = {4, sizeof nmi, 0xff, 0, 0, 1};        /* LINT1 of all processors */
    put(b, nmi, sizeof nmi);
    end_table(b, start);
    return start;
}

static size_t build_mcfg(struct builder *b)
{
    size_t start = begin_table(b, "MCFG", 1);
    put_integer(b, 0, 8); /* reserved */
    put_integer(b, MACHINE_ECAM_BASE, 8);
    put_integer(b, 0, 2);   /* segment */
    put_integer(b, 0, 1);   /* first bus */
    put_integer(b, 255, 1); /* last bus */
    put_integer(b, 0, 4);
    end_table(b, start);
    return start;
}

/* RSDT and XSDT: the same list with 4 and 8-byte pointers. */
static size_t build_root(struct builder *b, const char *signature, unsigned pointer_size)
{
    size_t start = begin_table(b, signature, 1);
    for (unsigned i = 0; i < b->listed_count; i++) {
        patch_pointer(b, ACPI_BLOB_TABLES, b->out.size, pointer_size);
        put_integer(b, b->listed[i], pointer_size);
    }
    end_table(b, start);
    return start;
}

static void build_rsdp(struct builder *b, size_t rsdt, size_t xsdt)
{
    uint8_t *r = b->tables->rsdp;
    memcpy(r, "RSD PTR ", 8);
    memcpy(r + 9, "PARAT ", 6);
    r[15] = 2; /* revision */
    store_le32(r + 16, (uint32_t)rsdt);
    store_le32(r + 20, ACPI_RSDP_SIZE);
    store_le64(r + 24, xsdt);
    patch_pointer(b, ACPI_BLOB_RSDP, 16, 4);
    patch_pointer(b, ACPI_BLOB_RSDP, 24, 8);
    patch_checksum(b, ACPI_BLOB_RSDP, 8, 0, 20);
    patch_checksum(b, ACPI_BLOB_RSDP, 32, 0, ACPI_RSDP_SIZE);
}

int acpi_build(struct acpi_tables *out, const struct acpi_config *config, struct err *err)
{
    struct builder b = {.tables = out};
    memset(out, 0, sizeof *out);
    aml_init(&b.out);
    size_t facs = build_facs(&b), dsdt = build_dsdt(&b, config);
    list_table(&b, build_fadt(&b, facs, dsdt));
    list_table(&b, build_madt(&b, config));
    list_table(&b, build_mcfg(&b));
    size_t rsdt = build_root(&b, "RSDT", 4), xsdt = build_root(&b, "XSDT", 8);
    build_rsdp(&b, rsdt, xsdt);
    if (b.out.failed || b.failed || b.out.depth) {
        aml_free(&b.out);
        return err_set(err, ENOMEM, "cannot build the ACPI tables: out of memory");
    }
    out->data = b.out.data;
    out->size = b.out.size;
    return 0;
}

void acpi_free(struct acpi_tables *tables)
{
    free(tables->data);
    tables->data = NULL;
}

/* --- placing --- */

static void apply(uint8_t *blob, const struct acpi_patch *patch, uint64_t address)
{
    uint8_t *at = blob + patch->offset;
    if (patch->kind == ACPI_PATCH_POINTER) {
        uint64_t value = 0;
        memcpy(&value, at, patch->size);
        value += address;
        memcpy(at, &value, patch->size);
        return;
    }
    uint8_t sum = 0;
    *at = 0;
    for (uint32_t i = 0; i < patch->length; i++)
        sum = (uint8_t)(sum + blob[patch->start + i]);
    *at = (uint8_t)-sum;
}

/* Checksums last: they cover the pointers. */
void acpi_place(struct acpi_tables *tables, uint64_t address)
{
    for (int pass = ACPI_PATCH_POINTER; pass <= ACPI_PATCH_CHECKSUM; pass++)
        for (unsigned i = 0; i < tables->patch_count; i++) {
            const struct acpi_patch *patch = &tables->patch[i];
            if ((int)patch->kind == pass)
                apply(patch->blob == ACPI_BLOB_RSDP ? tables->rsdp : tables->data, patch, address);
        }
}

int boot_acpi_load(struct boot_map *map, struct err *err)
{
    struct machine *machine = map->machine;
    const struct acpi_config config = {machine->config.vcpu_count, machine->pci64_base};
    const uint64_t tables_at = BOOT_RSDP + 64;
    struct acpi_tables tables;
    int error = acpi_build(&tables, &config, err);
    if (error)
        return error;
    acpi_place(&tables, tables_at);
    if (tables.size > BOOT_ROM_END - tables_at)
        error = -E2BIG;
    if (!error)
        error = guest_memory_write(machine->memory, gpa(BOOT_RSDP), tables.rsdp, ACPI_RSDP_SIZE);
    if (!error)
        error = guest_memory_write(machine->memory, gpa(tables_at), tables.data, tables.size);
    acpi_free(&tables);
    return error ? err_set(err, -error, "cannot write the ACPI tables: %s", strerror(-error)) : 0;
}
