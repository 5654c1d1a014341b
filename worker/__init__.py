"""The learner process: the only one that changes weights. ④⑤⑥⑦"""
