/* Numbers of the PCI Local Bus Specification 3.0, chapter 6. */
#ifndef PARAT_DEVICE_PCI_PCI_DEFS_H
#define PARAT_DEVICE_PCI_PCI_DEFS_H

#define PCI_CONFIG_SIZE 256
#define PCI_SLOTS       32
#define PCI_BARS        6

/* Config header, type 0 (6.1). */
#define PCI_VENDOR_ID           0x00
#define PCI_DEVICE_ID           0x02
#define PCI_COMMAND             0x04
#define PCI_STATUS              0x06
#define PCI_REVISION_ID         0x08
#define PCI_CLASS_CODE          0x09 /* 3 bytes */
#define PCI_CACHE_LINE_SIZE     0x0c
#define PCI_HEADER_TYPE         0x0e
#define PCI_BAR0                0x10
#define PCI_SUBSYSTEM_VENDOR_ID 0x2c
#define PCI_SUBSYSTEM_ID        0x2e
#define PCI_CAPABILITIES        0x34
#define PCI_INTERRUPT_LINE      0x3c
#define PCI_INTERRUPT_PIN       0x3d
#define PCI_HEADER_END          0x40

/* COMMAND (6.2.2) */
#define PCI_COMMAND_IO           0x0001
#define PCI_COMMAND_MEMORY       0x0002
#define PCI_COMMAND_BUS_MASTER   0x0004
#define PCI_COMMAND_PARITY       0x0040
#define PCI_COMMAND_SERR         0x0100
#define PCI_COMMAND_INTX_DISABLE 0x0400
#define PCI_COMMAND_WRITABLE                                                                       \
    (PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_BUS_MASTER | PCI_COMMAND_PARITY |           \
     PCI_COMMAND_SERR | PCI_COMMAND_INTX_DISABLE)

/* STATUS (6.2.3) */
#define PCI_STATUS_INTERRUPT    0x0008
#define PCI_STATUS_CAPABILITIES 0x0010

/* BARs (6.2.5.1) */
#define PCI_BAR_IS_IO    0x1
#define PCI_BAR_IS_64    0x4
#define PCI_BAR_IO_BITS  0x3
#define PCI_BAR_MEM_BITS 0xf

/* Capabilities (appendix H) */
#define PCI_CAPABILITY_VENDOR 0x09
#define PCI_CAPABILITY_MSIX   0x11

/* MSI-X (6.8.2): message control, and parat's layout of table and pending bits in one BAR. */
#define PCI_MSIX_CONTROL        2 /* offset in the capability */
#define PCI_MSIX_CONTROL_ENABLE 0x8000
#define PCI_MSIX_CONTROL_MASK   0x4000
#define PCI_MSIX_ENTRY_SIZE     16
#define PCI_MSIX_ENTRY_MASKED   1u
#define PCI_MSIX_VECTORS_MAX    128
#define PCI_MSIX_TABLE_OFFSET   0
#define PCI_MSIX_PBA_OFFSET     0x800
#define PCI_MSIX_BAR_SIZE       0x1000

#endif
