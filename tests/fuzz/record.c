/* SPDX-License-Identifier: Apache-2.0 */
/* Registry records, each input as an agent's and as a node's. What decodes can be encoded (or is
 * too long with what it left out), and that decodes and encodes to the same text. */
#include "fuzz.h"

#include "format/record.h"

static void agent(struct klp_bytes text)
{
    struct klp_buf once KLP_AUTO(buf) = KLP_BUF_INIT(KLP_RECORD_SIZE_MAX);
    struct klp_buf twice KLP_AUTO(buf) = KLP_BUF_INIT(KLP_RECORD_SIZE_MAX);
    struct kelpie_error *err = NULL;
    struct klp_agent_record record, copy;
    if (!klp_agent_record_decode(text, &record, &err)) {
        fuzz_refused(err, KELPIE_E_CORRUPT);
        return;
    }
    FUZZ_CHECK(klp_agent_record_copy(&record, &copy, NULL));
    klp_agent_record_finish(&record);
    if (klp_agent_record_encode(&copy, &once, &err)) {
        FUZZ_CHECK(klp_agent_record_decode(klp_buf_view(&once), &record, NULL));
        FUZZ_CHECK(klp_agent_record_encode(&record, &twice, NULL));
        FUZZ_CHECK(fuzz_equal(klp_buf_view(&once), klp_buf_view(&twice)));
        klp_agent_record_finish(&record);
    } else {
        fuzz_refused(err, KELPIE_E_LIMIT);
    }
    klp_agent_record_finish(&copy);
}

static void node(struct klp_bytes text)
{
    struct klp_buf once KLP_AUTO(buf) = KLP_BUF_INIT(KLP_RECORD_SIZE_MAX);
    struct klp_buf twice KLP_AUTO(buf) = KLP_BUF_INIT(KLP_RECORD_SIZE_MAX);
    struct kelpie_error *err = NULL;
    struct klp_node_record record;
    if (!klp_node_record_decode(text, &record, &err)) {
        fuzz_refused(err, KELPIE_E_CORRUPT);
        return;
    }
    FUZZ_CHECK(klp_node_record_encode(&record, &once, NULL));
    FUZZ_CHECK(klp_node_record_decode(klp_buf_view(&once), &record, NULL));
    FUZZ_CHECK(klp_node_record_encode(&record, &twice, NULL));
    FUZZ_CHECK(fuzz_equal(klp_buf_view(&once), klp_buf_view(&twice)));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    agent((struct klp_bytes){data, size});
    node((struct klp_bytes){data, size});
    return 0;
}
