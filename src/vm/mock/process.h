/* SPDX-License-Identifier: Apache-2.0 */
/* Between the mock hypervisor in the keeper and its guest process: descriptors in fixed places,
 * small orders. */
#ifndef KLP_VM_MOCK_PROCESS_H
#define KLP_VM_MOCK_PROCESS_H

#define MOCK_GUEST_FD 3   /* stream to the host's sessions */
#define MOCK_CONTROL_FD 4 /* SEQPACKET: an order, answered by one message */
#define MOCK_MEMORY_FD 5  /* sealed memory it maps copy-on-write */

/* An order and its answer: a letter, a number that the answer repeats (an answer that comes too
 * late is known by it), and what belongs to it. A refusal has '!' for the letter. */
#define MOCK_ORDER_HEADER 2
#define MOCK_ORDER_STOP 'S'
#define MOCK_ORDER_CONT 'C'
#define MOCK_ORDER_LOAD 'L' /* + device state */
#define MOCK_ORDER_SAVE 'D' /* answered with the device state behind it */
#define MOCK_DEVICE_MAX 256
#define MOCK_ORDER_MAX (MOCK_ORDER_HEADER + MOCK_DEVICE_MAX)

#endif
