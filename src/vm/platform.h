/*
 * Fixed places of the q35-1 machine that both its devices and its ACPI tables name: the ICH9's
 * power-management block and the legacy devices' ports and lines.
 */
#ifndef PARAT_VM_PLATFORM_H
#define PARAT_VM_PLATFORM_H

/* The ACPI block, at PMBASE (ICH9 data sheet, section 13.8.3). */
#define PLATFORM_PM_BASE      0x600
#define PLATFORM_PM1_EVT      (PLATFORM_PM_BASE + 0x00) /* status, enable: 2 bytes each */
#define PLATFORM_PM1_CNT      (PLATFORM_PM_BASE + 0x04)
#define PLATFORM_PM_TMR       (PLATFORM_PM_BASE + 0x08)
#define PLATFORM_GPE0         (PLATFORM_PM_BASE + 0x20) /* status, enable: 2 bytes each */
#define PLATFORM_GPE0_SIZE    4
#define PLATFORM_SCI_LINE     9
#define PLATFORM_SLP_TYP_S5   7
#define PLATFORM_RESET_PORT   0xcf9 /* inside the PCI configuration ports, so the host bridge's */
#define PLATFORM_RESET_VALUE  0x06
#define PLATFORM_CMOS_CENTURY 0x32

#define PLATFORM_FW_CFG_PORT 0x510

#endif
