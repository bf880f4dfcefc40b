// A mixture in the manner of CoreMark: a linked list that is searched, reversed and sorted, a small
// matrix of integers, a state machine over text, and a CRC over what came out.
#include <stdlib.h>
#include <string.h>
#include "work.h"

#define NODE_COUNT  160
#define MATRIX_SIZE 12
#define TEXT_SIZE   512

struct node {
    struct node *next;
    int16_t value, index;
};

struct mixture {
    struct node nodes[NODE_COUNT];
    struct node *head;
    int16_t a[MATRIX_SIZE][MATRIX_SIZE], b[MATRIX_SIZE][MATRIX_SIZE];
    int32_t c[MATRIX_SIZE][MATRIX_SIZE];
    char text[TEXT_SIZE];
    uint16_t crc;
};

static uint16_t crc16(uint16_t crc, uint32_t value)
{
    for (unsigned bit = 0; bit < 32; bit++) {
        uint16_t low = (uint16_t)((crc ^ value) & 1);
        value >>= 1;
        crc = (uint16_t)(crc >> 1);
        if (low) {
            crc ^= 0xA001;
        }
    }
    return crc;
}

static int by_value(const struct node *a, const struct node *b)
{
    return a->value - b->value;
}

static int by_index(const struct node *a, const struct node *b)
{
    return a->index - b->index;
}

static struct node *merge(struct node *a, struct node *b,
                          int (*compare)(const struct node *, const struct node *))
{
    struct node first = {NULL, 0, 0}, *tail = &first;
    while (a && b) {
        struct node **smaller = compare(a, b) <= 0 ? &a : &b;
        tail->next = *smaller;
        tail = *smaller;
        *smaller = tail->next;
    }
    tail->next = a ? a : b;
    return first.next;
}

static struct node *sort(struct node *list, unsigned count,
                         int (*compare)(const struct node *, const struct node *))
{
    if (count < 2) {
        return list;
    }
    struct node *middle = list;
    for (unsigned i = 1; i < count / 2; i++) {
        middle = middle->next;
    }
    struct node *second = middle->next;
    middle->next = NULL;
    return merge(sort(list, count / 2, compare), sort(second, count - count / 2, compare), compare);
}

static struct node *reverse(struct node *list)
{
    struct node *done = NULL;
    while (list) {
        struct node *next = list->next;
        list->next = done;
        done = list;
        list = next;
    }
    return done;
}

static unsigned find(const struct node *list, int16_t value)
{
    unsigned steps = 0;
    while (list && list->value != value) {
        list = list->next;
        steps++;
    }
    return steps;
}

static void do_list(struct mixture *mixture, unsigned round)
{
    for (unsigned i = 0; i < 8; i++) {
        unsigned steps = find(mixture->head, (int16_t)((round * 7 + i * 31) % 401));
        mixture->crc = crc16(mixture->crc, steps);
        mixture->head = reverse(mixture->head);
    }
    mixture->head = sort(mixture->head, NODE_COUNT, by_value);
    mixture->crc = crc16(mixture->crc, (uint32_t)mixture->head->index);
    mixture->head = sort(mixture->head, NODE_COUNT, by_index);
}

static void do_matrix(struct mixture *mixture, unsigned round)
{
    for (unsigned i = 0; i < MATRIX_SIZE; i++) {
        for (unsigned j = 0; j < MATRIX_SIZE; j++) {
            int32_t sum = 0;
            for (unsigned k = 0; k < MATRIX_SIZE; k++) {
                sum += mixture->a[i][k] * mixture->b[k][j];
            }
            mixture->c[i][j] = sum;
        }
    }
    int32_t total = 0;
    for (unsigned i = 0; i < MATRIX_SIZE; i++) {
        for (unsigned j = 0; j < MATRIX_SIZE; j++) {
            total += mixture->c[i][j] >> 3 & 0x1FF;
            mixture->a[i][j] = (int16_t)(mixture->a[i][j] + (int)(round & 3) - 1);
        }
    }
    mixture->crc = crc16(mixture->crc, (uint32_t)total);
}

enum scan {
    SCAN_START,
    SCAN_SIGN,
    SCAN_DIGITS,
    SCAN_FRACTION,
    SCAN_EXPONENT,
    SCAN_WORD,
    SCAN_COUNT
};

static enum scan scan_next(enum scan state, char c)
{
    if (c == ',') {
        return SCAN_START;
    }
    switch (state) {
    case SCAN_START:
        return c == '-' || c == '+' ? SCAN_SIGN : c >= '0' && c <= '9' ? SCAN_DIGITS : SCAN_WORD;
    case SCAN_SIGN:
        return c >= '0' && c <= '9' ? SCAN_DIGITS : SCAN_WORD;
    case SCAN_DIGITS:
        return c == '.' ? SCAN_FRACTION : c >= '0' && c <= '9' ? SCAN_DIGITS : SCAN_WORD;
    case SCAN_FRACTION:
        return c == 'e' ? SCAN_EXPONENT : c >= '0' && c <= '9' ? SCAN_FRACTION : SCAN_WORD;
    case SCAN_EXPONENT:
        return c >= '0' && c <= '9' ? SCAN_EXPONENT : SCAN_WORD;
    default:
        return SCAN_WORD;
    }
}

static void do_text(struct mixture *mixture, unsigned round)
{
    uint32_t visits[SCAN_COUNT] = {0};
    enum scan state = SCAN_START;
    for (unsigned i = 0; i < TEXT_SIZE; i++) {
        state = scan_next(state, mixture->text[i]);
        visits[state]++;
    }
    for (unsigned i = 0; i < SCAN_COUNT; i++) {
        mixture->crc = crc16(mixture->crc, visits[i]);
    }
    // One character changes from round to round, within the text.
    mixture->text[round % TEXT_SIZE] ^= 1;
}

void *work_coremark_prepare(void)
{
    static const char words[] = "5012,-874,+122,35.54400,-.12345,7.e55,T0.3e-1F,1.5e2,hello,99999,";
    struct mixture *mixture = calloc(1, sizeof(*mixture));
    if (!mixture) {
        return NULL;
    }
    uint64_t random = 1;
    for (int i = 0; i < NODE_COUNT; i++) {
        mixture->nodes[i] = (struct node) {mixture->head, (int16_t)(work_random(&random) % 401),
                                           (int16_t)(NODE_COUNT - i)};
        mixture->head = &mixture->nodes[i];
    }
    for (unsigned i = 0; i < MATRIX_SIZE * MATRIX_SIZE; i++) {
        mixture->a[i / MATRIX_SIZE][i % MATRIX_SIZE] = (int16_t)(work_random(&random) & 0x7F);
        mixture->b[i / MATRIX_SIZE][i % MATRIX_SIZE] = (int16_t)(work_random(&random) & 0x7F);
    }
    for (unsigned i = 0; i < TEXT_SIZE; i++) {
        mixture->text[i] = words[i % (sizeof(words) - 1)];
    }
    return mixture;
}

uint64_t work_coremark_run(void *data, uint64_t count)
{
    struct mixture *mixture = data;
    for (uint64_t round = 0; round < count; round++) {
        do_list(mixture, (unsigned)round);
        do_matrix(mixture, (unsigned)round);
        do_text(mixture, (unsigned)round);
    }
    return mixture->crc;
}
