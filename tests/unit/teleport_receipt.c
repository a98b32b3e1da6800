/* SPDX-License-Identifier: Apache-2.0 */
/* The receipt of uniqueness: every item missing, failed, false or twice is refused, by the table of
 * each case. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "teleport/teleport.h"

static void good(enum klp_unique_case which, struct klp_unique_request *request,
                 struct klp_unique_receipt *receipt)
{
    *request = (struct klp_unique_request){.which = which, .wall_ns = 1000000000000};
    memset(request->generation, 1, 16);
    memset(request->machine_id, 2, 16);
    memset(request->boot_id, 3, 16);
    strcpy(request->hostname, "host");
    memset(receipt, 0, sizeof(*receipt));
    for (int item = KLP_ITEM_GENERATION; item < KLP_ITEM_COUNT; item++)
        receipt->items[item].result = KLP_UNIQUE_DONE;
    receipt->items[KLP_ITEM_GENERATION].evidence_size = 16;
    memset(receipt->items[KLP_ITEM_GENERATION].evidence, 1, 16);
    receipt->items[KLP_ITEM_KERNEL_RNG].evidence_size = 32;
    receipt->items[KLP_ITEM_CLOCK].evidence_size = 8;
    for (unsigned i = 0; i < 8; i++)
        receipt->items[KLP_ITEM_CLOCK].evidence[i] =
            (uint8_t)((uint64_t)request->wall_ns >> (8 * i));
    receipt->items[KLP_ITEM_MACHINE_ID].evidence_size = 16;
    memset(receipt->items[KLP_ITEM_MACHINE_ID].evidence, 2, 16);
    receipt->items[KLP_ITEM_BOOT_ID].evidence_size = 16;
    memset(receipt->items[KLP_ITEM_BOOT_ID].evidence, 3, 16);
    receipt->items[KLP_ITEM_HOSTNAME].evidence_size = 4;
    memcpy(receipt->items[KLP_ITEM_HOSTNAME].evidence, "host", 4);
}

static void refused(const struct klp_unique_request *request,
                    const struct klp_unique_receipt *receipt)
{
    struct kelpie_error *error = NULL;
    assert_false(klp_receipt_check(request, receipt, &error));
    assert_int_equal(kelpie_error_code(error), KELPIE_E_CORRUPT);
    assert_int_equal(kelpie_error_reason_count(error), 1);
    kelpie_error_free(error);
}

static bool must_be_done(enum klp_unique_case which, int item)
{
    switch (item) {
    case KLP_ITEM_GENERATION:
    case KLP_ITEM_KERNEL_RNG:
    case KLP_ITEM_CLOCK:
        return true;
    case KLP_ITEM_MACHINE_ID:
    case KLP_ITEM_HOSTNAME:
        return which == KLP_UNIQUE_FORK;
    case KLP_ITEM_BOOT_ID:
        return which != KLP_UNIQUE_MOVE;
    default:
        return false;
    }
}

static void test_teleport_receipt__every_case_and_item(void **state)
{
    (void)state;
    struct klp_unique_request request;
    struct klp_unique_receipt receipt;
    for (int which = KLP_UNIQUE_MOVE; which <= KLP_UNIQUE_FORK; which++) {
        good((enum klp_unique_case)which, &request, &receipt);
        assert_true(klp_receipt_check(&request, &receipt, NULL));
        for (int item = KLP_ITEM_GENERATION; item < KLP_ITEM_COUNT; item++) {
            good((enum klp_unique_case)which, &request, &receipt);
            receipt.items[item].result = 0;
            refused(&request, &receipt);
            receipt.items[item].result = KLP_UNIQUE_FAILED;
            refused(&request, &receipt);
            receipt.items[item].result = KLP_UNIQUE_NOT_APPLICABLE;
            if (must_be_done((enum klp_unique_case)which, item))
                refused(&request, &receipt);
            else
                assert_true(klp_receipt_check(&request, &receipt, NULL));
        }
    }
}

static void test_teleport_receipt__false_evidence(void **state)
{
    (void)state;
    static const int items[] = {KLP_ITEM_GENERATION, KLP_ITEM_MACHINE_ID, KLP_ITEM_BOOT_ID,
                                KLP_ITEM_HOSTNAME};
    struct klp_unique_request request;
    struct klp_unique_receipt receipt;
    for (size_t i = 0; i < 4; i++) {
        good(KLP_UNIQUE_FORK, &request, &receipt);
        receipt.items[items[i]].evidence[0] ^= 1;
        refused(&request, &receipt);
        good(KLP_UNIQUE_FORK, &request, &receipt);
        receipt.items[items[i]].evidence_size--;
        refused(&request, &receipt);
    }
    good(KLP_UNIQUE_FORK, &request, &receipt);
    receipt.items[KLP_ITEM_KERNEL_RNG].evidence_size = 31;
    refused(&request, &receipt);
}

static void test_teleport_receipt__clock_is_right_to_a_quarter_second(void **state)
{
    (void)state;
    struct klp_unique_request request;
    struct klp_unique_receipt receipt;
    good(KLP_UNIQUE_MOVE, &request, &receipt);
    request.wall_ns += 249000000;
    assert_true(klp_receipt_check(&request, &receipt, NULL));
    request.wall_ns += 2000000;
    refused(&request, &receipt);
    request.wall_ns -= 502000000;
    refused(&request, &receipt);
}

static void test_teleport_receipt__an_item_twice(void **state)
{
    (void)state;
    struct klp_unique_request request;
    struct klp_unique_receipt receipt;
    good(KLP_UNIQUE_FORK, &request, &receipt);
    receipt.duplicate = true;
    refused(&request, &receipt);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_teleport_receipt__every_case_and_item),
        cmocka_unit_test(test_teleport_receipt__false_evidence),
        cmocka_unit_test(test_teleport_receipt__clock_is_right_to_a_quarter_second),
        cmocka_unit_test(test_teleport_receipt__an_item_twice),
    };
    return cmocka_run_group_tests_name("teleport_receipt", tests, NULL, NULL);
}
