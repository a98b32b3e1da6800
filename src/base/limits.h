/* SPDX-License-Identifier: Apache-2.0 */
/* Every ceiling that more than one folder relies on, with its unit. A bound of one file stays
 * there. */
#ifndef KLP_BASE_LIMITS_H
#define KLP_BASE_LIMITS_H

#define KLP_KIB 1024u
#define KLP_MIB (1024u * 1024u)

#define KLP_ERROR_REASONS_MAX 32
#define KLP_ERROR_TEXT_MAX 4096 /* bytes of one message */

/* Configuration of a VM (kelpie-original 1.4). */
#define KLP_VCPUS_MAX 32
#define KLP_VCPUS_DEFAULT 1
#define KLP_MEMORY_MIB_MIN 128
#define KLP_MEMORY_MIB_MAX 16384
#define KLP_MEMORY_MIB_DEFAULT 512
#define KLP_PATH_MAX 4096

/* What a process in a guest is given. */
#define KLP_ARGV_MAX 1024                 /* strings */
#define KLP_ENV_MAX 1024                  /* strings */
#define KLP_ARG_BYTES_MAX (256 * KLP_KIB) /* argv + environment of one exec, in all */
#define KLP_EXEC_OUTPUT_MAX                                                                        \
    (10 * KLP_MIB)               /* of each stream of a one-shot exec; more is cut and flagged */
#define KLP_EXEC_CHANNELS_MAX 64 /* at once in one guest */

/* Wires. */
#define KLP_FRAME_BODY_MAX (64 * KLP_KIB) /* guest frames */
#define KLP_REST_BODY_MAX KLP_MIB         /* JSON documents */
#define KLP_REST_DEPTH_MAX 16
#define KLP_KEEPER_FRAME_MAX (64 * KLP_KIB)
#define KLP_KEEPER_HANDLES_MAX 16

/* Snapshots. */
#define KLP_PAGE_LOG2_MIN 6  /* 64 B: simulation only */
#define KLP_PAGE_LOG2_MAX 16 /* 64 KiB */
#define KLP_FRAME_PAGES 16
#define KLP_PACK_SIZE_MAX (64u * KLP_MIB)
#define KLP_PACK_SIZE_TARGET (16u * KLP_MIB)
#define KLP_MANIFEST_SIZE_MAX KLP_MIB
#define KLP_DEVICE_STATE_MAX (16u * KLP_MIB)
#define KLP_LAYERS_MAX 8       /* laid over one another in one VM */
#define KLP_BLOCK_SIZE KLP_MIB /* what travels between capture, hashing and the store */

#endif
