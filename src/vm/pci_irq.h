/*
 * How PCI INTx pins reach the interrupt lines: root-bus slot d, pin p (0: INTA# to 3: INTD#) is
 * PIRQ (d + p) mod 8, and PIRQ A to H are the global system interrupts 16 to 23. The PCI devices
 * and the ACPI tables' _PRT both use this.
 */
#ifndef PARAT_VM_PCI_IRQ_H
#define PARAT_VM_PCI_IRQ_H

#define PCI_IRQ_PIRQ_COUNT 8
#define PCI_IRQ_FIRST_GSI  16

static inline unsigned pci_irq_pirq(unsigned slot, unsigned pin)
{
    return (slot + pin) % PCI_IRQ_PIRQ_COUNT;
}

static inline unsigned pci_irq_gsi(unsigned slot, unsigned pin)
{
    return PCI_IRQ_FIRST_GSI + pci_irq_pirq(slot, pin);
}

#endif
