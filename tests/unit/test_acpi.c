/* boot/acpi: tables that check out, lie where pointers say, and that iasl reads without complaint.
 */
#include "rig.h"

#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "boot/acpi.h"
#include "boot/aml.h"
#include "vm/pci_irq.h"

#define BASE 0xe0040ull

static uint8_t sum(const uint8_t *bytes, size_t size)
{
    uint8_t total = 0;
    for (size_t i = 0; i < size; i++)
        total = (uint8_t)(total + bytes[i]);
    return total;
}

static void build(struct acpi_tables *tables, unsigned vcpu_count)
{
    struct err err = {{0}};
    struct acpi_config config = {vcpu_count, 0x200000000};
    assert_int_equal(acpi_build(tables, &config, &err), 0);
    acpi_place(tables, BASE);
}

/* A table by the address that another one names; its length and checksum are checked. */
static const uint8_t *table_at(const struct acpi_tables *tables, uint64_t address,
                               const char *signature)
{
    assert_true(range_fits(address - BASE, 36, tables->size));
    const uint8_t *table = tables->data + (address - BASE);
    assert_memory_equal(table, signature, 4);
    assert_true(range_fits(address - BASE, load_le32(table + 4), tables->size));
    assert_int_equal(sum(table, load_le32(table + 4)), 0);
    return table;
}

static void test_pointers_and_checksums(void **state)
{
    (void)state;
    struct acpi_tables tables;
    build(&tables, 4);
    assert_memory_equal(tables.rsdp, "RSD PTR ", 8);
    assert_int_equal(sum(tables.rsdp, 20), 0);
    assert_int_equal(sum(tables.rsdp, 36), 0);
    const uint8_t *rsdt = table_at(&tables, load_le32(tables.rsdp + 16), "RSDT");
    const uint8_t *xsdt = table_at(&tables, load_le64(tables.rsdp + 24), "XSDT");
    static const char *const names[] = {"FACP", "APIC", "MCFG"};
    assert_int_equal(load_le32(xsdt + 4), 36 + sizeof names / sizeof *names * 8);
    for (unsigned i = 0; i < ARRAY_COUNT(names); i++) {
        table_at(&tables, load_le64(xsdt + 36 + i * 8), names[i]);
        assert_int_equal(load_le32(rsdt + 36 + i * 4), load_le64(xsdt + 36 + i * 8));
    }
    const uint8_t *fadt = table_at(&tables, load_le64(xsdt + 36), "FACP");
    table_at(&tables, load_le64(fadt + 140), "DSDT");
    assert_int_equal(load_le64(fadt + 140), load_le32(fadt + 40));
    uint64_t facs = load_le32(fadt + 36);
    assert_int_equal(facs % 64, 0);
    assert_memory_equal(tables.data + (facs - BASE), "FACS", 4);
    acpi_free(&tables);
}

static void test_madt_lists_processors_and_overrides(void **state)
{
    (void)state;
    struct acpi_tables tables;
    build(&tables, 64);
    const uint8_t *xsdt = table_at(&tables, load_le64(tables.rsdp + 24), "XSDT");
    const uint8_t *madt = table_at(&tables, load_le64(xsdt + 44), "APIC");
    unsigned processors = 0, overrides = 0, ioapics = 0;
    for (uint32_t at = 44; at < load_le32(madt + 4); at += madt[at + 1]) {
        assert_true(madt[at + 1] >= 2);
        if (madt[at] == 0)
            assert_int_equal(madt[at + 3], processors++);
        ioapics += madt[at] == 1 && load_le32(madt + at + 4) == MACHINE_IOAPIC_BASE;
        overrides += madt[at] == 2 && madt[at + 3] == 0 && load_le32(madt + at + 4) == 2;
    }
    assert_int_equal(processors, 64);
    assert_int_equal(ioapics, 1);
    assert_int_equal(overrides, 1);
    acpi_free(&tables);
}

static void test_aml_encodings(void **state)
{
    (void)state;
    static const uint8_t expected[] = {
        0x08, 'A',  'B',  '_',  '_',  0x0b, 0x34, 0x12, /* Name (AB, 0x1234) */
        0x0c, 0x41, 0xd0, 0x0a, 0x08,                   /* EisaId ("PNP0A08") */
        0x12, 0x85, 0x00, 0x00, 0x01, 0x01,             /* Package (1) {One} */
        '\\', 0x2e, '_',  'S',  'B',  '_',  'P',  'C',  'I', '0'};
    struct aml aml;
    aml_init(&aml);
    aml_name_integer(&aml, "AB", 0x1234);
    aml_eisa_id(&aml, "PNP0A08");
    aml_begin_package(&aml, 1);
    aml_integer(&aml, 1);
    aml_end(&aml);
    aml_path(&aml, "\\_SB.PCI0");
    assert_false(aml.failed);
    assert_int_equal(aml.size, sizeof expected);
    assert_memory_equal(aml.data, expected, sizeof expected);
    aml_end(&aml); /* nothing is open */
    assert_true(aml.failed);
    aml_free(&aml);
}

static void test_interrupt_swizzle(void **state)
{
    (void)state;
    assert_int_equal(pci_irq_gsi(0, 0), 16);
    assert_int_equal(pci_irq_gsi(3, 1), 20);
    assert_int_equal(pci_irq_gsi(31, 3), 16 + (31 + 3) % 8);
}

/* --- iasl, where it is installed --- */

static void write_file(const char *folder, const char *name, const uint8_t *table)
{
    char path[200];
    snprintf(path, sizeof path, "%s/%s.aml", folder, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(table, 1, load_le32(table + 4), file), load_le32(table + 4));
    fclose(file);
}

/* The exit status of a shell command in the folder. */
static int shell(const char *folder, const char *command)
{
    char line[1000];
    snprintf(line, sizeof line, "cd %s && %s", folder, command);
    int status = system(line);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void test_iasl_accepts_them(void **state)
{
    (void)state;
    if (system("command -v iasl >/dev/null 2>&1") != 0) {
        print_message("skipped: iasl (acpica-tools) is not installed\n");
        skip();
    }
    char folder[] = "/tmp/parat-acpi-XXXXXX";
    assert_non_null(mkdtemp(folder));
    struct acpi_tables tables;
    build(&tables, 3);
    const uint8_t *xsdt = table_at(&tables, load_le64(tables.rsdp + 24), "XSDT");
    const uint8_t *fadt = table_at(&tables, load_le64(xsdt + 36), "FACP");
    write_file(folder, "facp", fadt);
    write_file(folder, "apic", table_at(&tables, load_le64(xsdt + 44), "APIC"));
    write_file(folder, "mcfg", table_at(&tables, load_le64(xsdt + 52), "MCFG"));
    write_file(folder, "dsdt", table_at(&tables, load_le64(fadt + 140), "DSDT"));
    acpi_free(&tables);
    /* Each disassembles, and what comes out compiles without an error or a warning. */
    assert_int_equal(shell(folder, "iasl -d *.aml >disassemble.log 2>&1"), 0);
    assert_int_equal(shell(folder, "! grep -iE 'error|warning|invalid|incorrect' *.dsl"), 0);
    assert_int_equal(shell(folder, "iasl -we *.dsl >compile.log 2>&1"), 0);
    assert_int_equal(shell(folder, "test $(grep -c ' 0 Errors, 0 Warnings' compile.log) -ge 1"), 0);
    assert_int_equal(shell(folder, "grep -q '_PRT' dsdt.dsl && grep -q 'COM1' dsdt.dsl"), 0);
    assert_int_equal(shell(folder, "rm -rf \"$PWD\""), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pointers_and_checksums),
        cmocka_unit_test(test_madt_lists_processors_and_overrides),
        cmocka_unit_test(test_aml_encodings),
        cmocka_unit_test(test_interrupt_swizzle),
        cmocka_unit_test(test_iasl_accepts_them),
    };
    return cmocka_run_group_tests_name("acpi", tests, NULL, NULL);
}
