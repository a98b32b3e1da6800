/* SPDX-License-Identifier: Apache-2.0 */
/* Both halves of `cp`, by tar streams: pack.c reads this host's files, unpack.c writes them. */
#ifndef KLP_CLI_COPY_H
#define KLP_CLI_COPY_H

#include "format/tar.h"

/* Where the archive goes; false = stop (with *err set when it is an error). */
typedef bool copy_sink(void *arg, const void *data, size_t size, struct kelpie_error **err);
/* `path` and what is below it, named `name` in the archive, with the archive's end. Devices,
 * sockets and pipes are refused at the top and left out below. */
KELPIE_MUST_USE bool copy_pack(const char *path, const char *name, copy_sink *sink, void *arg,
                               struct kelpie_error **err);

struct copy_unpack;
/* Below the folder dir_fd (borrowed). rename: what the archive's one top entry is called here; NULL
 * = as in the archive. */
struct copy_unpack *copy_unpack_create(int dir_fd, const char *rename);
void copy_unpack_destroy(struct copy_unpack *unpack);
KELPIE_MUST_USE bool copy_unpack_feed(struct copy_unpack *unpack, const void *data, size_t size,
                                      struct kelpie_error **err);
/* CORRUPT when the archive had not ended. */
KELPIE_MUST_USE bool copy_unpack_end(struct copy_unpack *unpack, struct kelpie_error **err);

#endif
