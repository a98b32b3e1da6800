/* SPDX-License-Identifier: Apache-2.0 */
/* The library has no code of its own: it is the core and this host's implementations, linked whole.
 */
typedef int kelpie_library;
