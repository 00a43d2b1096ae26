/* Where the keys and values of a page lie: see attention.h for the layout. */
#ifndef SN_KV_PAGES_H
#define SN_KV_PAGES_H

#include "attention.h"

#include <stddef.h>

static const int ELEMENT_BYTES[4] = {4, 2, 2, 1};

/* One KV head of one page. */
typedef struct page_head {
    char *keys;          /* [key_dim][SN_PAGE] */
    char *values;        /* [SN_PAGE][value_dim], or the keys where they are shared */
    float *key_scales;   /* [SN_PAGE], or NULL */
    float *value_scales;
} page_head;

static inline page_head locate(const sn_attention *attention, const sn_kv *kv, int64_t slot, int head)
{
    int64_t vectors = (int64_t)SN_PAGE * ELEMENT_BYTES[kv->dtype], heads = attention->kv_heads;
    int64_t key = attention->key_dim * vectors, value = attention->shared ? 0 : attention->value_dim * vectors;
    char *at = (char *)kv->data + slot * kv->slot_bytes;
    page_head page = {at + head * key, at + heads * key + head * value, NULL, NULL};
    if (kv->dtype == SN_KV_INT8) {
        float *scales = (float *)(at + heads * (key + value));
        page.key_scales = scales + head * SN_PAGE;
        page.value_scales = page.key_scales + heads * SN_PAGE;
    }
    if (attention->shared) {
        page.values = page.keys;
        page.value_scales = page.key_scales;
    }
    return page;
}

static inline int64_t slot_of(const sn_piece *piece, int block, int64_t page)
{
    return piece->table[(int64_t)(block - piece->first_block) * piece->pages + page];
}

#endif
