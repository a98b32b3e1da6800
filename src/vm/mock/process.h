/* SPDX-License-Identifier: Apache-2.0 */
/* Between the mock hypervisor in the keeper and its guest process: descriptors in fixed places,
 * one-byte orders. */
#ifndef KLP_VM_MOCK_PROCESS_H
#define KLP_VM_MOCK_PROCESS_H

#define MOCK_GUEST_FD 3   /* stream to the host's sessions */
#define MOCK_CONTROL_FD 4 /* SEQPACKET: an order, answered by one message */
#define MOCK_MEMORY_FD 5  /* sealed memory it maps copy-on-write */

/* Orders: the first byte; the answer begins with the same one, or with '!' for a failure. */
#define MOCK_ORDER_STOP 'S'
#define MOCK_ORDER_CONT 'C'
#define MOCK_ORDER_LOAD 'L' /* + device state */
#define MOCK_ORDER_SAVE 'D' /* answered with the device state behind it */
#define MOCK_DEVICE_MAX 256

#endif
