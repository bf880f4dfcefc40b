/*
 * The machine's DSDT: the PCI root bridge with its windows and interrupt routing, the ISA devices,
 * the processors and the S5 package (ACPI 6.4 chapters 6 to 8; PCI Firmware 3.3 section 4). Pure.
 */
#include <stdio.h>

#include "boot/acpi.h"
#include "boot/aml.h"
#include "vm/machine.h"
#include "vm/pci_irq.h"
#include "vm/platform.h"

#define PCI_SLOTS 32
#define PCI_PINS  4

static void root_bridge_resources(struct aml *aml, const struct acpi_config *config)
{
    aml_begin_crs(aml);
    aml_resource_bus_window(aml, 0, 255);
    aml_resource_io(aml, 0xcf8, 8);
    aml_resource_io_window(aml, 0x0000, 0x0cf7);
    aml_resource_io_window(aml, 0x0d00, 0xffff);
    aml_resource_memory32_window(aml, MACHINE_PCI32_BASE, MACHINE_PCI32_END - 1);
    aml_resource_memory64_window(aml, config->pci64_base,
                                 config->pci64_base + MACHINE_PCI64_SIZE - 1);
    aml_end_resources(aml);
}

/* Every slot's four pins, straight to global system interrupts. */
static void interrupt_routing(struct aml *aml)
{
    aml_name(aml, "_PRT");
    aml_begin_package(aml, PCI_SLOTS * PCI_PINS);
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
        for (unsigned pin = 0; pin < PCI_PINS; pin++) {
            aml_begin_package(aml, 4);
            aml_integer(aml, slot << 16 | 0xffff);
            aml_integer(aml, pin);
            aml_integer(aml, 0);
            aml_integer(aml, pci_irq_gsi(slot, pin));
            aml_end(aml);
        }
    }
    aml_end(aml);
}

static void begin_isa_device(struct aml *aml, const char *name, const char *id)
{
    aml_begin_device(aml, name);
    aml_name_eisa_id(aml, "_HID", id);
    aml_begin_crs(aml);
}

static void end_isa_device(struct aml *aml)
{
    aml_end_resources(aml);
    aml_end(aml);
}

static void isa_devices(struct aml *aml)
{
    begin_isa_device(aml, "RTC", "PNP0B00");
    aml_resource_io(aml, 0x70, 2);
    aml_resource_irq(aml, 8);
    end_isa_device(aml);

    begin_isa_device(aml, "KBD", "PNP0303");
    aml_resource_io(aml, 0x60, 1);
    aml_resource_io(aml, 0x64, 1);
    aml_resource_irq(aml, 1);
    end_isa_device(aml);

    begin_isa_device(aml, "COM1", "PNP0501");
    aml_resource_io(aml, 0x3f8, 8);
    aml_resource_irq(aml, 4);
    aml_end_resources(aml);
    aml_name_integer(aml, "_UID", 1);
    aml_end(aml);

    aml_begin_device(aml, "FWCF");
    aml_name_string(aml, "_HID", "QEMU0002"); /* the name that guests' drivers know */
    aml_name_integer(aml, "_STA", 0x0b);
    aml_begin_crs(aml);
    aml_resource_io(aml, PLATFORM_FW_CFG_PORT, 12);
    end_isa_device(aml);
}

/* What no driver claims, so that the OS keeps its hands off. */
static void motherboard_resources(struct aml *aml)
{
    begin_isa_device(aml, "MBRD", "PNP0C02");
    aml_resource_io(aml, PLATFORM_PM_BASE, 0x80);
    aml_resource_io(aml, 0x4d0, 2);
    aml_resource_io(aml, 0x92, 1);
    aml_resource_memory32(aml, (uint32_t)MACHINE_ECAM_BASE, (uint32_t)MACHINE_ECAM_SIZE);
    aml_resource_memory32(aml, (uint32_t)MACHINE_IOAPIC_BASE, 0x1000);
    end_isa_device(aml);
}

static void root_bridge(struct aml *aml, const struct acpi_config *config)
{
    aml_begin_device(aml, "PCI0");
    aml_name_eisa_id(aml, "_HID", "PNP0A08");
    aml_name_eisa_id(aml, "_CID", "PNP0A03");
    aml_name_integer(aml, "_UID", 0);
    aml_name_integer(aml, "_SEG", 0);
    aml_name_integer(aml, "_BBN", 0);
    root_bridge_resources(aml, config);
    interrupt_routing(aml);
    aml_begin_device(aml, "ISA");
    aml_name_integer(aml, "_ADR", 0x1f0000);
    isa_devices(aml);
    aml_end(aml);
    aml_end(aml);
}

static void processors(struct aml *aml, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        char name[8];
        snprintf(name, sizeof name, "C%03X", i & 0xfff);
        aml_begin_device(aml, name);
        aml_name_string(aml, "_HID", "ACPI0007");
        aml_name_integer(aml, "_UID", i);
        aml_end(aml);
    }
}

void acpi_dsdt_body(struct aml *aml, const struct acpi_config *config)
{
    aml_begin_scope(aml, "\\_SB");
    root_bridge(aml, config);
    motherboard_resources(aml);
    processors(aml, config->vcpu_count);
    aml_end(aml);
    aml_name(aml, "\\_S5");
    aml_begin_package(aml, 4);
    aml_integer(aml, PLATFORM_SLP_TYP_S5);
    aml_integer(aml, PLATFORM_SLP_TYP_S5);
    aml_integer(aml, 0);
    aml_integer(aml, 0);
    aml_end(aml);
}
