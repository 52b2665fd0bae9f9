/* The table of kept requests: what the kernel waits for, by its unique, and in a list for each state, oldest first. */
#include "lane.h"

#include <stdlib.h>
#include <string.h>

static void list_append(struct list *list, struct kept *kept) {
    kept->next = NULL;
    kept->previous = list->last;
    *(list->last ? &list->last->next : &list->first) = kept;
    list->last = kept;
}

static void list_remove(struct list *list, struct kept *kept) {
    *(kept->previous ? &kept->previous->next : &list->first) = kept->next;
    *(kept->next ? &kept->next->previous : &list->last) = kept->previous;
}

static struct kept **bucket_of(struct kept_table *table, uint64_t unique) {
    return &table->buckets[(unique >> 1) % HASH_SIZE];
}

struct kept *kept_find(struct kept_table *table, uint64_t unique) {
    struct kept *kept = *bucket_of(table, unique);
    while (kept && kept->unique != unique)
        kept = kept->chain;
    return kept;
}

static bool slab_add(struct kept_table *table) {
    struct slab *slab = calloc(1, sizeof *slab);
    if (!slab)
        return false;
    slab->next = table->slabs;
    table->slabs = slab;
    for (int i = 0; i < SLAB_SIZE; i++) {
        slab->entries[i].chain = table->free_list;
        table->free_list = &slab->entries[i];
    }
    return true;
}

static uint64_t kept_size(const struct kept *kept) {
    return sizeof *kept + (kept->body == kept->inline_body ? 0 : kept->length);
}

/* Keep a copy of a request; NULL when there is no memory. */
struct kept *kept_add(struct kept_table *table, const struct fuse_in_header *request, uint32_t device,
                      enum kept_state state) {
    if (!table->free_list && !slab_add(table))
        return NULL;
    struct kept *kept = table->free_list;
    unsigned char *body = request->len <= INLINE_SIZE ? kept->inline_body : malloc(request->len);
    if (!body)
        return NULL;
    table->free_list = kept->chain;
    kept->body = memcpy(body, request, request->len);
    kept->unique = request->unique;
    kept->length = request->len;
    kept->opcode = request->opcode;
    kept->pid = request->pid;
    kept->device = device;
    kept->process = 0;
    kept->came_ns = kept->since_ns = kept->checked_ns = now_ns();
    kept->daemon_serial = 0;
    kept->state = state;
    kept->interrupted = kept->sent_before = kept->sent_again = kept->is_held = false;
    struct kept **bucket = bucket_of(table, request->unique);
    kept->chain = *bucket;
    *bucket = kept;
    list_append(&table->lists[state], kept);
    table->count++;
    table->bytes += kept_size(kept);
    return kept;
}

uint32_t kept_take(struct kept_table *table, uint64_t unique, uint32_t *device) {
    struct kept **link = bucket_of(table, unique), *kept;
    while ((kept = *link) && kept->unique != unique)
        link = &kept->chain;
    if (!kept)
        return 0;
    *link = kept->chain;
    *device = kept->device;
    list_remove(&table->lists[kept->state], kept);
    table->count--;
    table->held -= kept->is_held;
    table->bytes -= kept_size(kept);
    if (kept->body != kept->inline_body)
        free(kept->body);
    kept->chain = table->free_list;
    table->free_list = kept;
    return kept->opcode;
}

void kept_move(struct kept_table *table, struct kept *kept, enum kept_state state, uint64_t daemon_serial) {
    list_remove(&table->lists[kept->state], kept);
    kept->state = state;
    kept->daemon_serial = daemon_serial;
    kept->sent_before |= state == KEPT_SENT;
    kept->since_ns = now_ns();
    list_append(&table->lists[state], kept);
}

void kept_hold(struct kept_table *table, struct kept *kept) {
    table->held += !kept->is_held;
    kept->is_held = true;
    kept->sent_again = false;
    kept_move(table, kept, KEPT_HELD, 0);
}

void kept_free_all(struct kept_table *table) {
    for (int state = 0; state < KEPT_STATES; state++)
        for (struct kept *kept = table->lists[state].first; kept; kept = kept->next)
            if (kept->body != kept->inline_body)
                free(kept->body);
    for (struct slab *slab = table->slabs, *next; slab; slab = next) {
        next = slab->next;
        free(slab);
    }
}
