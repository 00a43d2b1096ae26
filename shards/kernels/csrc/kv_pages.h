/* Where the keys and values of a page lie: see attention.h for the layout. */
#ifndef SN_KV_PAGES_H
#define SN_KV_PAGES_H

#include "attention.h"

#include <stddef.h>

static const int ELEMENT_BYTES[4] = {4, 2, 2, 1};

/* One KV head of one page. */
typedef struct page_head {
    char *keys;          /* [head_dim][SN_PAGE] */
    char *values;        /* [SN_PAGE][head_dim] */
    float *key_scales;   /* [SN_PAGE] or NULL */
    float *value_scales;
} page_head;

static inline page_head locate(const sn_kv *kv, int64_t slot, int head)
{
    int64_t bytes = (int64_t)kv->head_dim * SN_PAGE * ELEMENT_BYTES[kv->dtype];
    char *at = (char *)kv->data + (slot * 2 * kv->kv_heads + head) * bytes;
    page_head page = {at, at + kv->kv_heads * bytes, NULL, NULL};
    if (kv->scales != NULL) {
        page.key_scales = kv->scales + (slot * 2 * kv->kv_heads + head) * SN_PAGE;
        page.value_scales = page.key_scales + kv->kv_heads * SN_PAGE;
    }
    return page;
}

static inline int64_t slot_of(const sn_piece *piece, int block, int64_t page)
{
    return piece->table[(int64_t)(block - piece->first_block) * piece->pages + page];
}

#endif
