/* Keeps requests for the same clusters of the disk apart; see qcow2_int.h. Any thread. */
#include "backend/disk/qcow2_int.h"

static bool is_free(const struct qcow2 *q, const struct qcow2_range *range)
{
    list_for_each (pos, &q->ranges) {
        const struct qcow2_range *other = container_of(pos, struct qcow2_range, link);
        if (other->first <= range->last && range->first <= other->last &&
            (other->exclusive || range->exclusive))
            return false;
    }
    return true;
}

void qcow2_range_take(struct qcow2 *q, struct qcow2_range *range)
{
    pthread_mutex_lock(&q->lock);
    while (!is_free(q, range))
        pthread_cond_wait(&q->changed, &q->lock);
    list_push_back(&q->ranges, &range->link);
    pthread_mutex_unlock(&q->lock);
}

void qcow2_range_give(struct qcow2 *q, struct qcow2_range *range)
{
    pthread_mutex_lock(&q->lock);
    list_remove(&range->link);
    pthread_cond_broadcast(&q->changed);
    pthread_mutex_unlock(&q->lock);
}
